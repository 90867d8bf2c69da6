"""Datasets asked of a memory of their whole corpus, and negatives mined from it."""

import pytest

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.settings import DataConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from msa_train.config import Config
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.datasets import dataset_reports
from msa_train.evaluation.mining import mine
from msa_train.evaluation.report import tables

WORDS = ["parse", "join", "split", "encode", "decode", "open", "close", "read", "write", "seek"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "verbs"
    passages = [Passage(w, w, f"How to {w} is told here, at length.") for w in WORDS * 3]
    passages = [Passage(f"{p.id}{i // 10}", p.title, p.text) for i, p in enumerate(passages)]
    questions = [
        (split, Question(f"{split}-{w}", f"How do I {w}?", (f"to {w}",), (f"{w}0",)))
        for split in ("train", "dev")
        for w in WORDS
    ]
    write_dataset(folder, passages, questions)
    return DatasetConfig(str(folder), held_out_split="dev", document_tokens=128)


def test_every_held_out_question_is_asked_beside_bm25_and_a_random_router(
    model, tokenizer, config, dataset, tmp_path
):
    data = DataConfig(niah=config.data.niah, datasets={"verbs": dataset})
    run = Config(model=config.model, data=data, evaluation=config.evaluation)
    section = dataset_reports(model, tokenizer, run, tmp_path, workers=1)["verbs"]
    assert section["questions"] == 10 and section["documents"] == 30
    # Three equal documents each, of which only one counts: word search finds all three.
    assert section["bm25_recall@5"] == 1 and 0 < section["bm25_recall@1"] < 1
    for k in (1, 5, 16):
        assert section["n"][f"recall@{k}"] == section["n"][f"random_recall@{k}"] == 10
        assert section[f"any_found@{k}"] == section[f"recall@{k}"], "one positive each"
    assert "verbs: 10 held-out questions" in _printed({"datasets": {"verbs": section}})


def _printed(report):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables(report))
    return console.export_text()


def test_mined_negatives_are_near_and_wrong(model, tokenizer, dataset, tmp_path):
    found = dict(mine(Asker(model, tokenizer, 4), dataset, tokenizer, tmp_path, count=3))
    assert sorted(found) == sorted(f"train-{w}" for w in WORDS)
    for id, negatives in found.items():
        word = id.removeprefix("train-")
        assert len(negatives) == 3 == len(set(negatives))
        assert not any(n.startswith(word) for n in negatives), "its twins hold the answer"
