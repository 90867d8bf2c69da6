"""Cached means are what a bank's keys and a question's query are projected from."""

from dataclasses import replace

import pytest
import torch

from data_pipeline.protocol import prompt_pieces
from msa_train.interop.export import load_export
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.model.weights import projection_names
from msa_train.router import means
from msa_train.router.means import (
    document_means,
    kept_document_means,
    kept_question_means,
    question_means,
)
from tests.batches import VOTING_ROUTER
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_export, tiny_model, tiny_tokenizer

QUESTIONS = ["Where is it?", "Who sleeps standing, and why?", "x"]


def own_model():
    return tiny_model("none", **VOTING_ROUTER)


def projected(model, layer, side, rows):
    weight = model.state_dict()[projection_names(layer)[side]]
    return (rows @ weight.T).unflatten(1, (-1, model.config.router_head_dim))


def test_projected_means_are_the_keys_of_a_bank():
    model, documents = own_model(), tiny_documents()
    found = document_means(model, tiny_tokenizer(), documents, model.config.router_layers)
    view = encode_in_memory(model, tiny_tokenizer(), documents)
    scoring, everything = model.config.router.scoring, torch.arange(len(documents))
    assert len(found) == len(documents)
    assert torch.equal(found.cu.diff(), view.chunk_counts)
    for layer, rows in found.rows.items():
        keys = scoring.key_vectors(projected(model, layer, 1, rows))
        expected = view.searcher.states(layer, everything).key
        torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)


def test_projected_means_are_the_queries_of_serving():
    model = own_model()
    found = question_means(model, tiny_tokenizer(), QUESTIONS, model.config.router_layers)
    view = encode_in_memory(model, tiny_tokenizer(), tiny_documents())
    prefill = prefill_pieces(model, tiny_tokenizer(), view, [prompt_pieces(q) for q in QUESTIONS])
    scoring, config = model.config.router.scoring, model.config
    for layer, rows in found.rows.items():
        query, _ = scoring.query_vectors(
            projected(model, layer, 0, rows), found.cu, config.router_key_heads, config.router_heads
        )
        expected = prefill.selected[layer].routing.query
        torch.testing.assert_close(query, expected, rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_not_computed_again(tmp_path, monkeypatch):
    documents = tiny_documents()
    loaded = load_export(tiny_export(tmp_path / "e"))
    first = kept_document_means(loaded, documents, (0, 2), tmp_path / "kept")
    computed = []
    real = means.document_means
    monkeypatch.setattr(
        means, "document_means", lambda *given: computed.append(given[-1]) or real(*given)
    )
    again = kept_document_means(loaded, documents, (2, 0, 1), tmp_path / "kept")
    assert computed == [[1]]
    assert torch.equal(first.rows[2], again.rows[2]) and torch.equal(first.cu, again.cu)
    other = load_export(tiny_export(tmp_path / "f", gate="none"))  # its router is no matter
    kept_document_means(other, documents, (0,), tmp_path / "kept")
    assert computed == [[1]]
    kept_document_means(loaded, documents[:-1], (0,), tmp_path / "kept")
    assert computed == [[1], [0]]
    loaded.model.config = replace(loaded.model.config, rope_theta=5e5)  # with the same weights
    kept_document_means(loaded, documents, (0,), tmp_path / "kept")
    assert computed == [[1], [0], [0]]


def test_questions_are_kept_under_what_is_asked(tmp_path, monkeypatch):
    loaded, kept = load_export(tiny_export(tmp_path / "e")), tmp_path / "kept"
    first = kept_question_means(loaded, QUESTIONS, (0, 2), kept)
    computed = []
    real = means.question_means
    monkeypatch.setattr(
        means, "question_means", lambda *given: computed.append(given[-1]) or real(*given)
    )
    again = kept_question_means(loaded, QUESTIONS, (0, 2), kept)
    assert computed == [] and torch.equal(first.rows[0], again.rows[0])
    kept_question_means(loaded, [*QUESTIONS[1:], QUESTIONS[0]], (0,), kept)
    assert computed == [[0]]
    router = replace(loaded.model.config.router, top_k=loaded.model.config.router.top_k + 1)
    loaded.model.config = replace(loaded.model.config, router=router)  # other positions
    kept_question_means(loaded, QUESTIONS, (0,), kept)
    assert computed == [[0], [0]]


def test_damaged_means_are_made_anew(tmp_path):
    loaded, kept = load_export(tiny_export(tmp_path / "e")), tmp_path / "kept"
    first = kept_question_means(loaded, QUESTIONS, (0,), kept)
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = kept_question_means(loaded, QUESTIONS, (0,), kept)
    assert torch.equal(again.rows[0], first.rows[0]) and path.read_bytes() == whole


@pytest.mark.parametrize("threads", [1, 2])
def test_means_do_not_depend_on_the_number_of_threads(threads):
    model, before = own_model(), torch.get_num_threads()
    alone = document_means(model, tiny_tokenizer(), tiny_documents(), (0, 2))
    try:
        torch.set_num_threads(threads)
        found = document_means(model, tiny_tokenizer(), tiny_documents(), (0, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found.rows[layer], alone.rows[layer]) for layer in (0, 2))
