"""Tiny training runs for the tests of the trainer, executed on every rank."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from msa_train.errors import DivergedError


def settings(output, **overrides) -> list[str]:
    """Command-line settings of a tiny run; `overrides` use __ for dots."""
    plain = {
        "output": str(output),
        "model.layers": 2, "model.hidden": 32, "model.heads": 4, "model.kv_heads": 2,
        "model.head_dim": 8, "model.ffn": 32, "model.vocab_size": 1200,
        "model.router.top_k": 3, "model.router.chunk_size": 16,
        "data.tokenizer.vocab_size": 1200,
        "data.niah.adjectives": 24, "data.niah.nouns": 24, "data.niah.values": 24,
        "data.niah.key_words": 2, "data.tokenizer.needle_texts": 400,
        "data.tokenizer.word_repeats": 40,
        "data.banks": "{niah: {documents: 12, contexts: 6}, pydocs: {weight: 0}}",
        "stages": "[{name: main, steps: 4, lr: 1e-2, router_weight: 1}]",
        "training.log_every": 1, "training.wandb.mode": "off",
    }  # fmt: skip
    plain |= {key.replace("__", "."): value for key, value in overrides.items()}
    return [part for key, value in plain.items() for part in (f"--{key}", str(value))]


def train_all(runs: list[dict]) -> list[dict]:
    """On each rank: train runs one after another; each a dict of _train's arguments."""
    from msa_train.config import load_config
    from msa_train.parallel import groups

    first = load_config(runs[0]["arguments"])
    groups.start(first.training.tensor_parallel, timeout_s=120)
    return [_train(**run) for run in runs]


def go_on(runs: list[tuple[list[str], int | None]], look: Callable[[Any], Any] | None = None):
    """On each rank: continue runs, one after another, each to a step or (None) its end.

    Returns (before, after) of each: what `look` saw in its trainer (before: None at the start).
    """
    from msa_train.config import load_config
    from msa_train.parallel import groups
    from msa_train.training.last_words import LastWords
    from msa_train.training.trainer import Trainer

    configs = [load_config(arguments) for arguments, _ in runs]
    groups.start(configs[0].training.tensor_parallel, timeout_s=120)
    found = []
    for config, (_, end) in zip(configs, runs, strict=True):
        config.path.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config, True, LastWords(config.path))
        before = look(trainer) if look and trainer.step else None
        if end is not None:
            _stop_after(trainer, end)
        trainer.run()
        found.append((before, look(trainer) if look else None))
        trainer.close()
    return found


def _train(
    arguments: list[str],
    stop_after: int | None = None,
    poison: tuple[int, ...] = (),
    plain: list[int] | None = None,
) -> dict:
    """plain: tokens of a context that asks no memory, whose final states are wanted as well."""
    from msa_train.config import load_config
    from msa_train.training.last_words import LastWords
    from msa_train.training.trainer import Trainer

    config = load_config(arguments)
    config.path.mkdir(parents=True, exist_ok=True)
    codes = []
    trainer = Trainer(config, False, LastWords(config.path))
    if poison:
        _poison(trainer, poison)
    if stop_after is not None:
        _stop_after(trainer, stop_after)
        codes.append(trainer.run())
        trainer.close()
        trainer = Trainer(config, True, LastWords(config.path))
    try:
        codes.append(trainer.run())
    except DivergedError as error:
        codes.append(str(error))
    found = {"codes": codes, "hidden": _hidden_states(trainer)}
    if plain is not None:
        found["plain"] = _states_of(trainer, plain_batch(plain))
    trainer.close()
    return found


def _poison(trainer, steps: tuple[int, ...]) -> None:
    """Losses of these steps (from 1) are not a number, on rank 1 alone."""
    real, rank = trainer.engine.backward, torch.distributed.get_rank()

    def backward(loss, **how):
        real(loss * float("nan") if rank == 1 and trainer.step + 1 in steps else loss, **how)

    trainer.engine.backward = backward


def _stop_after(trainer, steps: int) -> None:
    """As SIGTERM would at that step."""
    real = trainer._train_step

    def step(batches, logs):
        trainer.stopping = "a test" if trainer.step + 1 >= steps else ""
        return real(batches, logs)

    trainer._train_step = step


def _hidden_states(trainer):
    """Final states of the trained module for one batch: what the export must reproduce."""
    if trainer.settings.zero_stage == 3:
        return None  # its parameters are partitioned between steps
    return _states_of(trainer, example_batch(trainer.config))


def _states_of(trainer, batch):
    with torch.no_grad():
        states, _ = trainer.engine.model.hidden_states(batch)
    return states.float().numpy()


def plain_batch(tokens: list[int]):
    """One context at positions 0, 1, 2, ... that asks no memory."""
    from msa_train.model.batch import IGNORE, MemoryBatch

    count, none = len(tokens), torch.zeros(0, dtype=torch.int64)
    return MemoryBatch(
        doc_tokens=none, doc_cu=torch.tensor([0]), doc_numbers=none, doc_ids=none,
        bank_cu=torch.tensor([0, 0]), tokens=torch.tensor(tokens),
        ctx_cu=torch.tensor([0, count]), ctx_bank=torch.tensor([0]),
        positions=torch.arange(count), is_query=torch.zeros(count, dtype=torch.bool),
        memory_from=torch.tensor([0]), labels=torch.full((count,), IGNORE),
        positives=torch.zeros(1, 0, dtype=torch.bool), masked=torch.zeros(1, 0, dtype=torch.bool),
    )  # fmt: skip


def example_batch(config):
    from data_pipeline.shards.reader import ShardReader
    from msa_train.training.data import Collate

    reader = ShardReader(config.shards)
    return Collate(reader.tokenizer(), config.model.router)([reader[0]])


def logged(output: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
