"""Held-out evaluation: recall and forgetting as numbers, and the rows of sample retrievals."""

import math
from dataclasses import replace

import pytest
import torch

from data_pipeline.schema import Document, Query, Sample
from data_pipeline.shards.build import build_shards
from data_pipeline.shards.contexts import retrieve_context, text_context
from data_pipeline.shards.reader import ShardReader
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece
from msa_train.config import load_config
from msa_train.parallel.documents import DocumentGroup
from msa_train.training.data import Collate
from msa_train.training.gradient_cache import GradientCache
from msa_train.training.held_out import (
    COLUMNS,
    SNIPPET,
    HeldOutEvaluation,
    forgetting,
    retrieval_rows,
)
from tests.batches import tiny_config
from tests.distributed.runs import settings


def test_rows_of_retrievals():
    short, long = Document(7, "a  b\nc"), Document(3, "x" * 999)
    found = {5: [(short, 0.9)], 2: [(long, 0.8), (short, 0.1)]}
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in retrieval_rows("who?", [7, 4], found)]
    assert [(row["layer"], row["rank"], row["document"], row["hit"]) for row in rows] == [
        (2, 1, 3, False), (2, 2, 7, True), (5, 1, 7, True)
    ]  # fmt: skip
    assert rows[0]["question"] == "who?" and rows[0]["positives"] == "4, 7"
    assert len(rows[0]["text"]) == SNIPPET and rows[2]["text"] == "a b c"


def test_forgetting_is_what_plain_texts_have_lost():
    before = {"held_out/a_text/lm": 2.0, "held_out/a/lm": 1.0}
    now = {"held_out/a_text/lm": 2.5, "held_out/b_text/lm": 9.0, "held_out/a/lm": 3.0}
    assert forgetting(now, before) == {"held_out/a_text/forgetting": 0.5}


def test_numbers_are_means_of_each_source(megatron):
    documents = (Document(3, "the red door is open"), Document(41, "a blue door"))
    asked = retrieve_context(Query("which door is open?", ("red",), (3,)))
    plain = text_context("the red door")
    samples = [Sample(documents, (asked, plain), "a"), Sample(documents, (asked,), "b")]
    tokenizer = train_sentencepiece(["the red door is open, a blue door"] * 50, vocab_size=285)
    config = replace(tiny_config("threshold"), vocab_size=285)
    module = megatron(config)

    class Engine:
        device = torch.device("cpu")

        def __call__(self, batch):
            return module(batch)

    collate = Collate(tokenizer, config.router)
    evaluation = HeldOutEvaluation(samples, collate, config.router_layers, DocumentGroup())
    numbers, rows = evaluation.evaluate(GradientCache(Engine(), None))
    assert evaluation.names == ["a", "a_text", "b"]
    assert numbers["held_out/a_text/perplexity"] == pytest.approx(
        math.exp(numbers["held_out/a_text/lm"])
    )
    assert "held_out/a_text/router" not in numbers
    assert numbers["held_out/a/lm"] == pytest.approx(numbers["held_out/b/lm"])
    assert 0 <= numbers["held_out/a/recall@1"] <= numbers["held_out/a/recall@k"] == 1
    assert {row[0] for row in rows} == {"which door is open?"} and len(rows[0]) == len(COLUMNS)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_plain_texts_and_questions_alike(rank):
    documents = (Document(3, "the red door is open"),)
    asked = retrieve_context(Query("which door is open?", ("red",), (3,)))
    samples = [Sample(documents, (asked, text_context("the red door")), "a")] * 4
    evaluation = HeldOutEvaluation(samples, None, (0,), DocumentGroup(replica=rank, replicas=2))
    assert sorted(part.source for part in evaluation._own) == ["a", "a", "a_text", "a_text"]


def test_held_out_samples_lie_beside_shards_of_another_run(megatron, shards, tmp_path):
    """As the runs of a sweep find them, which have an output of their own."""
    base = tmp_path / "base"
    own = settings(
        tmp_path / "run", training__shards=base / "shards", training__held_out_every=2,
        training__held_out_samples=2,
    )  # fmt: skip
    config = load_config(own)
    tokenizer = ShardReader(shards).tokenizer()
    build_shards(config.held_out, base / "held_out", 1, tokenizer, held_out=True)
    collate = Collate(tokenizer, config.model.router)
    assert config.held_out_shards == str(base / "held_out")
    assert HeldOutEvaluation.of_run(config, collate, DocumentGroup()).names == ["niah"]
    (tmp_path / "run" / "held_out").mkdir(parents=True)
    assert config.held_out_shards == str(tmp_path / "run" / "held_out"), "its own come first"
    far = replace(config.training, shards="s3://bucket/base/shards/")
    elsewhere = replace(config, output=str(tmp_path / "far"), training=far)
    assert elsewhere.held_out_shards == "s3://bucket/base/held_out"
