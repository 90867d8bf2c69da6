"""How large samples are: by shards, by settings, by what a person says, of a batch."""

import pytest

from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.training.planner.sizes import CONTEXT_TOKENS, Given, SampleSize, stage_sizes
from tests.batches import random_batch, tiny_config
from tests.distributed.runs import settings

PAPER = ["--config", "configs/train/paper-mixture.yaml"]


def test_built_shards_are_believed(shards):
    config = load_config(settings("unused", training__shards=shards))
    [stage], assumed = stage_sizes(config, Given())
    assert (stage.name, stage.steps, stage.sample.documents) == ("main", 4, 12)
    assert stage.sample.contexts == 6 and not assumed
    assert 12 * 16 < stage.sample.document_tokens <= 12 * 64 + 12
    [said], assumed = stage_sizes(config, Given(memory_tokens=640, contexts=3))
    assert said.sample.document_tokens == 640 and said.sample.contexts == 3 and assumed


def test_settings_tell_the_rest(tmp_path):
    """The publication's banks of 14,000 tokens, in 32 samples of a step."""
    stages, [assumed] = stage_sizes(load_config(PAPER), Given(document_tokens=140))
    assert [stage.name for stage in stages] == ["router", "main", "sft short", "sft long"]
    main = stages[1].sample
    assert (main.document_tokens, main.documents, main.contexts) == (14_000, 100, 32)
    assert main.context_tokens == 32 * CONTEXT_TOKENS and main.chunks(64) == 300
    assert stages[1].steps == round(7.8e9 / 14_000 / 32) and "128 tokens" in assumed
    steps = "[{name: main, steps: 7, lr: 1e-3}]"
    plain = load_config([*settings(tmp_path), "--stages", steps])
    [stage], _ = stage_sizes(plain, Given(context_tokens=10))
    assert stage.steps == 7 and stage.sample.document_tokens == 12 * 64
    assert stage.sample.query_tokens == 6 * 5 and stage.sample.context_tokens == 60


def test_a_batch_tells_its_own():
    batch = random_batch([[40, 20]], [(0, 13), (0, 6)], tiny_config())
    found = SampleSize.of_batch(batch)
    assert found == SampleSize(
        60, 2, 3 + 13 + 3 + 6, 2, int(batch.is_query.sum()), batch.label_count
    )
    assert found.share(2) == SampleSize(30, 1, 13, 1, 5, 5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="memory-tokens is 0: give 1 or more"):
        Given(memory_tokens=0)
