import json
from dataclasses import replace

import pytest

from data_pipeline.errors import DataError
from data_pipeline.mixture import (
    BankConfig,
    BanksConfig,
    ContextConfig,
    DataConfig,
    Stage,
    TokenizerConfig,
)
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.needles import NiahConfig


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DataConfig(samples=0), r"data\.samples is 0"),
        (lambda: DataConfig(workers=0), r"data\.workers is 0"),
        (lambda: DataConfig(seed=-1), r"data\.seed is -1"),
        (lambda: DataConfig(stages=()), "0 stages"),
        (lambda: DataConfig(samples=1, stages=(Stage(), Stage())), "2 stages for 1 samples"),
        (lambda: DataConfig(stages=(Stage(document_tokens=65),)), r"stages\[0\]\.document_tokens"),
        (lambda: DataConfig(stages=(Stage(weights={}),)), "every source has weight 0"),
        (lambda: DataConfig(numbers=NumberConfig(limit=100)), r"niah\.documents is 128"),
        (lambda: DataConfig(niah=NiahConfig(key_words=1, nouns=9)), "only 9 keys"),
        (lambda: Stage(share=0), "share is 0"),
        (lambda: Stage(document_tokens=-1), "document_tokens is -1"),
        (lambda: Stage(weights={"books": 1.0}), "'books'"),
        (lambda: Stage(weights={"niah": -1.0}), r"weights\.niah is -1"),
        (lambda: BankConfig(weight=-1), "weight is -1"),
        (lambda: BankConfig(documents=0), "documents is 0"),
        (lambda: ContextConfig(retrieve=-1), "retrieve is -1"),
        (lambda: ContextConfig(0, 0, 0), "all 0"),
        (lambda: ContextConfig(wrong_share=2), "wrong_share is 2"),
        (lambda: ContextConfig(wrong_documents=0), "wrong_documents is 0"),
        (lambda: TokenizerConfig(vocab_size=100), "vocab_size is 100"),
        (lambda: TokenizerConfig(needle_texts=-1), "needle_texts is -1"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_stages_share_the_samples():
    config = DataConfig(samples=100, stages=(Stage(1), Stage(2), Stage(1)))
    assert config.stage_ends() == (25, 75, 100)


def test_every_stage_has_a_sample():
    stages = (Stage(1e-9), Stage(1.0), Stage(1e-9))
    assert DataConfig(samples=3, stages=stages).stage_ends() == (1, 2, 3)


def test_a_stage_may_weigh_the_sources_itself():
    banks = BanksConfig(BankConfig(3.0), BankConfig(1.0))
    config = DataConfig(banks=banks, stages=(Stage(), Stage(weights={"pydocs": 2.0})))
    assert config.source_weights(0) == {"niah": 3.0, "pydocs": 1.0}
    assert config.source_weights(1) == {"niah": 0.0, "pydocs": 2.0}


def test_settings_are_plain_and_leave_out_what_changes_nothing():
    config = DataConfig()
    assert json.loads(json.dumps(config.settings()))["niah"]["key_words"] == 3
    assert config.settings() == replace(config, workers=7).settings()
    assert config.settings() != replace(config, seed=7).settings()
