"""What is counted as found, read and compared."""

import pytest

from msa_train.bench.memory import banks
from msa_train.bench.memory.generate import Planted, generate_bank, read_questions
from msa_train.memory.search.live import LiveBank
from tests.bench.memory.tiny_sizes import CHUNK, load
from tests.memory.tiny import FINGERPRINT


def test_a_question_is_found_by_its_documents_number(tmp_path):
    model, tokenizer, _ = load()
    path = tmp_path / "bank"
    generate_bank(model, tokenizer, FINGERPRINT, path, 50 * CHUNK, 4, 40)
    asked = read_questions(path)
    view = LiveBank(path, model, FINGERPRINT).view
    engine = banks.MemoryEngine(model, tokenizer, view)
    nobody = [Planted(each.question, 10_000, "") for each in asked]
    assert banks._found(engine, nobody, 16) == 0
    assert banks._found(engine, asked, 50) >= banks._found(engine, asked, 1)


def test_linearity_compares_the_smallest_with_the_largest_bank():
    rows = [{"tokens": n * 10**6, "route_best_ms": ms} for n, ms in ((4, 2.0), (1, 1.0), (2, 9.0))]
    assert banks.linearity(rows) == {
        "from_tokens": 10**6, "to_tokens": 4 * 10**6, "ms_per_mtoken": [1.0, 0.5], "ratio": 0.5,
    }  # fmt: skip


def test_a_corpus_folder_without_documents_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"it has no \*.jsonl"):
        list(banks._corpora(tmp_path))
