import json
import subprocess
import sys
from dataclasses import replace

import pytest

from data_pipeline.errors import DataError
from data_pipeline.settings import (
    BanksConfig,
    ContextConfig,
    CorpusStage,
    DataConfig,
    StageData,
    TokenizerConfig,
    TrainingCorpus,
)
from data_pipeline.sources.base import BankConfig, NumberConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.niah import NiahConfig


def corpus(config=None, **data):
    return TrainingCorpus(config or DataConfig(), (CorpusStage(StageData(**data), samples=4),))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DataConfig(workers=0), r"data\.workers is 0"),
        (lambda: DataConfig(seed=-1), r"data\.seed is -1"),
        (lambda: DataConfig(datasets={"niah": DatasetConfig("x")}), "'niah'"),
        (lambda: TrainingCorpus(DataConfig(), ()), "stages is empty"),
        (lambda: corpus(document_tokens=65), r"stages\[0\]\.data\.document_tokens"),
        (lambda: corpus(weights={}), "every source has weight 0"),
        (lambda: corpus(weights={"books": 1.0}), "'books'"),
        (lambda: corpus(DataConfig(numbers=NumberConfig(limit=100))), "of niah have 128 documents"),
        (lambda: corpus(DataConfig(niah=NiahConfig(key_words=1, nouns=9))), "only 9 keys"),
        (lambda: corpus(tasks={"single": 0.0}), "positive share"),
        (lambda: StageData(document_tokens=-1), "document_tokens is -1"),
        (lambda: StageData(memory_tokens=0), "memory_tokens is 0"),
        (lambda: StageData(weights={"niah": -1.0}), r"weights\.niah is -1"),
        (lambda: StageData(weights={"niah": float("nan")}), r"weights\.niah is nan"),
        (lambda: BankConfig(weight=-1), "weight of a bank .* is -1"),
        (lambda: BankConfig(documents=0), "documents of a bank .* is 0"),
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


def test_a_stage_may_weigh_the_sources_itself():
    data = DataConfig(
        banks=BanksConfig(BankConfig(3.0), BankConfig(1.0)),
        datasets={"books": DatasetConfig("x", bank=BankConfig(0.5))},
    )
    stages = (CorpusStage(samples=1), CorpusStage(StageData(weights={"books": 2.0}), samples=1))
    found = TrainingCorpus(data, stages)
    assert found.source_weights(0) == {"niah": 3.0, "pydocs": 1.0, "books": 0.5}
    assert found.source_weights(1) == {"niah": 0.0, "pydocs": 0.0, "books": 2.0}


def test_what_holds_nothing_out_is_left_out_of_the_held_out_corpus():
    books = DatasetConfig("x", tasks={"given": 1.0, "text": 1.0, "title": 0.0})
    quiz = DatasetConfig("y", held_out_split="dev", made_held_out_share=0.0)
    closed = DatasetConfig("z", tasks={"given": 1.0})
    data = DataConfig(datasets={"books": books, "quiz": quiz, "closed": closed})
    weights = {"books": 1.0, "quiz": 2.0, "closed": 3.0}
    stages = (CorpusStage(StageData(document_tokens=0), samples=9),)
    stages += (CorpusStage(StageData(weights=weights), samples=9),)
    held_out = TrainingCorpus(data, stages).held_out(5)
    assert held_out.source_weights(0) == {"niah": 0, "pydocs": 0, "books": 1.0, "quiz": 2.0}
    assert held_out.data.datasets["books"].tasks == {"text": 1.0}
    assert [stage.samples for stage in held_out.stages] == [5]
    with pytest.raises(DataError, match="nothing is held out"):
        corpus(DataConfig(datasets={"closed": closed}), weights={"closed": 1.0}).held_out(5)


def test_settings_are_plain_and_leave_out_what_changes_nothing():
    config = DataConfig()
    assert json.loads(json.dumps(corpus().settings())) == corpus().settings()
    assert corpus().settings()["data"]["niah"]["key_words"] == 3
    assert corpus().settings() == corpus(replace(config, workers=7)).settings()
    assert corpus().settings() != corpus(replace(config, seed=7)).settings()


@pytest.mark.parametrize(
    "module", ["data_pipeline", "data_pipeline.protocol", "data_pipeline.settings"]
)
def test_importing_is_light(module):
    code = (
        f"import sys, {module}; print({{'webdataset', 'wonderwords', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
