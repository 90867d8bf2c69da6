"""Imported backbones under tensor parallelism, and through DeepSpeed without a change."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.shards.build import build_shards
from msa_train.config import load_config
from msa_train.interop.backbones.convert import import_backbone
from msa_train.interop.export import export, load_export
from tests.data_pipeline.tokenizer.test_huggingface import ENDS, LACKING, trained
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import settings, train_all
from tests.interop.backbones.models import logits_of, random_model, save

TOKENS = [(7 * i + 3) % 300 for i in range(40)]
STILL = "[{name: still, steps: 1, lr: 0, router_weight: 1}]"


@pytest.mark.slow  # half a minute each, most of it ranks that start
@pytest.mark.parametrize(
    ("case", "ranks", "rows", "stage"),
    [("qwen2-yarn", 2, 512, 2), ("llama-llama3", 3, 513, 0)],
)
def test_an_imported_backbone_stays_what_it_was(tmp_path, case, ranks, rows, stage):
    """Nine heads with three of keys divide over three ranks; a step without a rate changes
    nothing."""
    theirs = random_model(case)
    theirs.resize_token_embeddings(rows)
    source = save(theirs, tmp_path / "source", trained(LACKING, ENDS))
    import_backbone(source, tmp_path / "start")
    model = asdict(load_export(tmp_path / "start").model.config)
    del model["router"]
    shown = {name: v if isinstance(v, str) else json.dumps(v) for name, v in model.items()}
    arguments = settings(
        tmp_path / "run",
        **{f"model__{name}": value for name, value in shown.items()},
        data__tokenizer__path=tmp_path / "start", data__niah__document_tokens=160, stages=STILL,
        training__shards=tmp_path / "shards", training__start_from=tmp_path / "start",
        training__tensor_parallel=ranks, training__zero_stage=stage,
    )  # fmt: skip
    build_shards(load_config(arguments).corpus, tmp_path / "shards", workers=1)
    (result,) = run_ranks(ranks, train_all, [{"arguments": arguments, "plain": TOKENS}])[0]
    assert result["codes"] == [0]
    export(tmp_path / "run", tmp_path / "export")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("start", "export"))
    assert before.keys() < after.keys(), "the run has gates besides"
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    head = before.get("lm_head.weight", before["model.embed_tokens.weight"])
    logits = torch.from_numpy(result["plain"]) @ head.T
    expected = logits_of(theirs, torch.tensor(TOKENS))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
