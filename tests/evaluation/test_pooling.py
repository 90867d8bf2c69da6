"""Corpora in one bank: equal texts once, questions and means of each corpus as they were."""

import torch

from data_pipeline.dataset import Passage, Question, write_dataset
from msa_train.evaluation.pooling import Pool
from msa_train.evaluation.retrieval import compare_retrieval
from msa_train.interop.export import load_export
from msa_train.router import means
from msa_train.router.examples import read_examples
from msa_train.router.exports import cached_examples, router_projections, start_router
from msa_train.router.fit import Voter
from msa_train.router.settings import StartSettings
from tests.memory.tiny import tiny_export

SHARED = "The keeper of the lighthouse counts boats, gulls and storms every evening"
CORPORA = {
    "one": [Passage("a", "Lighthouse", SHARED + "."), Passage("b", "Rain", "It rains."),
            Passage("c", "", "Cranes sleep standing in the water of the old harbour all night.")],
    "two": [Passage("d", "Harbour", "The code of the harbour is 4711, and nobody wrote it down."),
            Passage("e", "Keeper", SHARED.upper() + "!"), Passage("f", "Tide", "It rains.")],
}  # fmt: skip
ASKED = {"one": Question("1", "Who counts gulls?", (), ("a",)),
         "two": Question("2", "Who counts boats? Which code?", (), ("d", "e"))}  # fmt: skip


def given(folder):
    for name, passages in CORPORA.items():
        write_dataset(folder / name, passages, [("dev", ASKED[name])])
    data = [str(folder / name) for name in CORPORA]
    export = tiny_export(folder / "export")
    start_router(export, data, folder / "own", StartSettings(layers="0,2"))
    return folder / "own", data


def test_equal_texts_stand_once_and_questions_follow_them(tmp_path):
    export, data = given(tmp_path)
    loaded = load_export(export)
    corpora = [read_examples(source, loaded.tokenizer, "dev") for source in data]
    pool = Pool(corpora)
    # A stub is another text under another title.
    assert [document.id for document in pool.documents] == ["a", "b", "c", "d", "f"]
    assert [document.number for document in pool.documents] == [0, 1, 2, 3, 4]
    assert [pool.examples(n).pairs[0].documents for n in (0, 1)] == [(0,), (3, 0)]
    weights, config = router_projections(export), loaded.model.config
    alone = [cached_examples(loaded, each, None) for each in corpora]
    for n in (0, 1):
        found = pool.cached(n, loaded, None)
        assert found.positives == (pool.examples(n).pairs[0].documents,)
        each = [Voter(config, weights, other.documents)(found.questions) for other in alone]
        expected = torch.cat([each[0], each[1][:, [0, 2]]], 1)
        torch.testing.assert_close(
            Voter(config, weights, found.documents)(found.questions), expected
        )


def test_documents_are_encoded_once_for_all_questions(tmp_path, monkeypatch):
    export, data = given(tmp_path)
    encoded, real = [], means.document_means
    monkeypatch.setattr(
        means, "document_means", lambda *args: encoded.append(len(args[2])) or real(*args)
    )
    compare_retrieval([export], data, "dev", pooled=True)
    assert encoded == [3, 3]


def test_all_are_compared_over_the_same_bank(tmp_path):
    export, data = given(tmp_path)
    report = compare_retrieval([export], data, "dev", pooled=True)
    assert report["pooled"] and [report["corpora"][d]["documents"] for d in data] == [5, 5]
    assert report["corpora"][data[0]]["recall"]["BM25"]["recall@1"] == 1
