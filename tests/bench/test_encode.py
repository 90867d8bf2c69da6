"""The floor of encoding counts the arithmetic that is really done."""

import json

import pytest
import torch
from msa_kernels import cumulative
from torch.utils.flop_counter import FlopCounterMode

from msa_train.bench import encode
from msa_train.interop.export import ON_CPU
from tests.memory.tiny import tiny_documents, tiny_export, tiny_model


@pytest.mark.parametrize("layers", ["3", "1,2", "0"])
def test_its_products_are_those_of_the_layers_below_the_last_router(layers):
    model = tiny_model("none", layers=layers, reads="none", query_reduce="pooled", key_heads=1)
    lengths, last = [7, 80, 33], model.config.last_router_layer
    tokens, cu = torch.zeros(sum(lengths), dtype=torch.int64), cumulative(torch.tensor(lengths))
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model.encode(tokens, cu)
    config, size = model.config, model.config.router.chunk_size
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    own = 2 * sum(lengths) * config.hidden * width  # projections of the last layer
    chunks = sum(-(-n // size) for n in lengths)
    keys = 2 * chunks * config.hidden * config.router_head_dim * len(config.router_layers)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    products = (
        encode.encode_flops(config, lengths) - 4 * config.heads * config.head_dim * pairs * last
    )
    assert counted.get_flop_counts()["Global"][torch.ops.aten.mm] == products + own + keys


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
