"""A corpus is encoded, and its rate stands beside its floor."""

import json

import pytest

from msa_train.bench import encode
from msa_train.interop.export import ON_CPU
from tests.memory.tiny import tiny_documents, tiny_export


def test_a_row_is_measured(tmp_path):
    export = tiny_export(tmp_path / "export")
    corpus = tmp_path / "corpus.jsonl"
    written = [d for d in tiny_documents() if d.text.strip()]
    rows = ({"id": str(d.number), "text": d.text} for d in written)
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = encode.measure(export, str(corpus), ON_CPU)
    assert row["documents"] == len(written)
    assert row["ratio"] == pytest.approx(row["floor_tokens_per_s"] / row["tokens_per_s"], rel=0.1)
    few = encode.measure(export, str(corpus), ON_CPU, tokens=row["tokens"] - 1)
    assert 1 <= few["documents"] < row["documents"]
    first = encode.measure(export, str(corpus), ON_CPU, tokens=1)  # less than any document
    assert first["documents"] == 1 and first["tokens"] > 1
