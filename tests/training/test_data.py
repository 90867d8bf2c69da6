"""A run's samples: shards and tokenizer checked; text to tensors, positions, labels, positives."""

import pytest
import torch

from data_pipeline.protocol import context_pieces, document_pieces
from data_pipeline.schema import Document, Query, Sample
from data_pipeline.shards.contexts import (
    answer_memory_context,
    answer_text_context,
    retrieve_context,
)
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.model.batch import IGNORE
from msa_train.model.config import RouterConfig
from msa_train.training.data import Collate, checked_tokenizer, open_shards, samples_per_group
from tests.distributed.runs import settings

TOP_K = 5
DOCUMENTS = (Document(3, "the red door is open"), Document(41, "a blue door"), Document(77, "tea"))
QUERY = Query("which door is open?", ("red",), (3,))


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(["the red door is open, a blue door, tea"] * 50, vocab_size=290)


@pytest.fixture(scope="module")
def batch(tokenizer):
    contexts = (
        retrieve_context(QUERY),
        answer_text_context(QUERY, DOCUMENTS[:1]),
        answer_memory_context(QUERY),
    )
    other = Sample((Document(5, "alone"),), (retrieve_context(Query("who?", ("it",), (5,))),))
    return Collate(tokenizer, RouterConfig(top_k=TOP_K))([Sample(DOCUMENTS, contexts), other])


def test_documents_are_packed_in_order(tokenizer, batch):
    tokens = [tokenizer.encode_pieces(document_pieces(d.number, d.text)).tokens for d in DOCUMENTS]
    assert batch.doc_numbers.tolist() == [3, 41, 77, 5]
    assert batch.bank_cu.tolist() == [0, 3, 4]
    assert batch.doc_tokens[: batch.doc_cu[3]].tolist() == [t for each in tokens for t in each]


def test_positions_leave_room_for_the_documents_after_the_head(batch):
    head = int(batch.memory_from[0])
    first = batch.positions[: batch.ctx_cu[1]].tolist()
    assert first[:head] == list(range(head))
    assert first[head:] == list(range(head + TOP_K, len(first) + TOP_K))


def test_labels_are_the_next_written_token(tokenizer, batch):
    start, end = batch.ctx_cu[2:4].tolist()
    labels, tokens = batch.labels[start:end], batch.tokens[start:end]
    written = [int(t) for t in labels if t != IGNORE]
    assert tokenizer.decode(written) == "The answer to the question is: red<|im_end|>"
    for place in range(end - start - 1):
        assert labels[place] in (IGNORE, tokens[place + 1])
    assert labels[-1] == IGNORE


def test_query_tokens_are_the_question(tokenizer, batch):
    start, end = batch.ctx_cu[:2].tolist()
    asked = tokenizer.decode(batch.tokens[start:end][batch.is_query[start:end]].tolist())
    text = "".join(p.text for p in context_pieces(retrieve_context(QUERY)))
    assert asked in text
    assert asked.endswith("related to the question\n")


def test_positives_are_columns_of_the_own_bank(batch):
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = expected[2, 0] = expected[3, 3] = True
    assert torch.equal(batch.positives, expected)
    assert batch.ctx_bank.tolist() == [0, 0, 0, 1]
    assert batch.routed_context_count == 3


@pytest.fixture
def run(shards, tmp_path):
    """Makes the config of a run on the tiny shards."""
    return lambda **overrides: load_config(
        settings(tmp_path / "run", training__shards=shards, **overrides)
    )


def test_shards_of_other_settings_are_refused(run):
    assert len(open_shards(run())) > 0
    said = r"other settings: data\.niah\.adjectives \(\d+, now 25\): give those, or build"
    with pytest.raises(ConfigError, match=said):
        open_shards(run(data__niah__adjectives=25))


def test_a_tokenizer_that_the_model_does_not_know_is_refused(run, tokenizer, tmp_path):
    reader = open_shards(run())
    assert checked_tokenizer(run(), reader).vocab_size <= 1200
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 1100"):
        checked_tokenizer(run(model__vocab_size=1100), reader)
    tokenizer.save(tmp_path / "backbone")
    with pytest.raises(ConfigError, match="whose tokenizer is not that of"):
        checked_tokenizer(run(training__start_from=tmp_path / "backbone"), reader)


def test_every_rank_reads_equally_many_samples(run):
    assert samples_per_group(run(), 2, 1) == 1
    with pytest.raises(ConfigError, match="2, which 3 data-parallel ranks cannot share"):
        samples_per_group(run(), 3, 1)


def test_documents_that_change_nothing_are_left_out(tokenizer):
    answers = (answer_text_context(QUERY, DOCUMENTS[:2]),)
    voting = RouterConfig(top_k=TOP_K, reads="none", query_reduce="pooled")
    given = [Sample(DOCUMENTS, answers), Sample(DOCUMENTS, (*answers, retrieve_context(QUERY)))]
    batch = Collate(tokenizer, voting)(given)
    assert batch.bank_cu.tolist() == [0, 0, 3], "a context that routes keeps its bank"
    assert batch.positives.tolist() == [[False] * 3, [False] * 3, [True, False, False]]
    reading = Collate(tokenizer, RouterConfig(top_k=TOP_K))(given)
    assert reading.bank_cu.tolist() == [0, 3, 6], "so does a layer that reads"
    assert torch.equal(batch.tokens, reading.tokens)
