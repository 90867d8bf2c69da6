"""A source of one's own is one file: docs/extending.md shows it, and here it is done."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.settings import DataConfig
from data_pipeline.sources.base import Source, register
from data_pipeline.sources.registry import SOURCES

DOCS = Path(__file__).parents[3] / "docs"
RUN = """
import sys
from pathlib import Path

folder, out = map(Path, sys.argv[1:])
import data_pipeline.sources

# As if phones.py stood in data_pipeline/sources.
data_pipeline.sources.__path__.append(str(folder / "sources"))

import json
from dataclasses import asdict, replace

import torch

from data_pipeline.settings import TrainingCorpus
from data_pipeline.shards.build import build_shards
from data_pipeline.shards.manifest import ShardManifest
from data_pipeline.shards.reader import ShardReader
from data_pipeline.tokenizer_training import corpus_texts
from msa_train.config import load_config
from msa_train.evaluation.evaluate import evaluate
from msa_train.evaluation.report import tables
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.decoder import MSADecoder


def main():
    config = load_config(["--config", str(folder / "run.yaml")])
    build_shards(config.corpus, out / "shards")
    reader = ShardReader(out / "shards")
    samples = [reader[i] for i in range(len(reader))]
    tokenizer = reader.tokenizer()
    build_shards(config.held_out, out / "held_out", 1, tokenizer, held_out=True)
    unseen = ShardReader(out / "held_out")
    held_out = [unseen[i] for i in range(len(unseen))]
    torch.manual_seed(0)
    shape = ModelConfig(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32,
                        vocab_size=tokenizer.vocab_size, router=RouterConfig(top_k=4))
    report = evaluate(MSADecoder(shape).eval(), tokenizer, config, out)
    assert tables(report).renderables[0].title.startswith("Phone book: 20 held-out questions")
    stages = tuple(replace(stage, data=replace(stage.data, weights={"niah": 1.0}))
                   for stage in config.corpus.stages)
    before = TrainingCorpus(replace(config.corpus.data, phones=type(config.data.phones)(),
                                    banks=type(config.data.banks)()), stages)
    print(json.dumps({
        "sources": sorted({sample.source for sample in samples}),
        "asked": sorted({c.question for s in samples for c in s.contexts if s.source == "phones"}),
        "held_out": sorted({c.question for s in held_out for c in s.contexts}),
        "texts": sum("number of person" in t for t in corpus_texts(config.data, ("phones",))),
        "longest": len(tokenizer.encode_text(" number of person")),
        "section": report["phones"],
        "recorded": "phones" in config.corpus.settings()["data"],
        "recorded_before": "phones" in before.settings()["data"],
        "files": sorted(path.name for path in out.iterdir()),
    }))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The source of the documentation in a folder of its own, and a run that uses it."""
    text = (DOCS / "extending.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "PhonesSource" in c)
    folder = tmp_path_factory.mktemp("sources")
    (folder / "sources").mkdir()
    (folder / "sources" / "phones.py").write_text(code)
    (folder / "run.py").write_text(RUN)
    settings = {
        "output": str(folder / "run"),
        "data": {
            "phones": {"people": 200},
            "banks": {"phones": {"weight": 1, "documents": 12, "contexts": 4}},
            "tokenizer": {"vocab_size": 1024, "needle_texts": 50, "word_repeats": 5},
            "workers": 1,
        },
        "stages": [{"name": "main", "lr": 1e-3, "steps": 5, "data": {"weights": {"phones": 1}}}],
        "training": {"held_out_samples": 3},
        "evaluation": {"text_questions": 3, "resamples": 20, "workers": 1},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    return folder


def test_a_source_of_ones_own_is_one_file(example, tmp_path):
    """Its settings are read, shards are built, a tokenizer is trained, a model is evaluated."""
    command = [sys.executable, example / "run.py", example, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["sources"] == ["phones"]
    assert len(found["asked"]) > 20 and not set(found["asked"]) & set(found["held_out"])
    assert found["texts"] == 180 and found["longest"] <= 4, "the tokenizer knows its words"
    section = found["section"]
    assert section["questions"] == section["documents"] == 20
    assert section["n"]["recall@1"] == 20 and section["n"]["answer_text"] == 3
    assert section["bm25_recall@1"] > 0.5
    assert {"phones.png", "report.json", "shards", "held_out"} <= set(found["files"])
    assert found["recorded"] and not found["recorded_before"], "older shards stay valid"


def test_the_sources_that_come_with_the_project():
    assert tuple(SOURCES)[:2] == ("niah", "pydocs"), "shards depend on their order"
    for name, source in SOURCES.items():
        assert issubclass(source, Source) and source.name == name
        assert getattr(DataConfig(), name) == source.settings()


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two sources are named 'niah'"):
        register(type("Other", (), {"name": "niah"}))
