"""What `msa router` does: an export in, one with another router out; the backbone stays."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from data_pipeline import files
from msa_train.errors import CheckpointError
from msa_train.interop.backbones.backbone import FORMS
from msa_train.interop.backbones.model_card import CARD, rerouted
from msa_train.interop.backbones.weights_file import write_weights
from msa_train.interop.export import (
    CONFIG,
    FINGERPRINT,
    ON_CPU,
    RUN_CONFIG,
    WEIGHTS,
    LoadedModel,
    Placement,
    load_export,
    seal,
)
from msa_train.interop.published_config import from_published, to_published
from msa_train.model.config import ModelConfig
from msa_train.model.weights import projection_names, weight_shapes
from msa_train.router.examples import RouterExamples, read_examples
from msa_train.router.fit import CachedExamples, Projections, check_pooled, fit, recalls
from msa_train.router.means import joined, kept_document_means, kept_question_means
from msa_train.router.settings import RECALL_AT, FitSettings, ProbeSettings, StartSettings
from msa_train.router.whitening import started

_VOTERS = 3
# Not copied: made anew, or of the other router (a run's config).
_MADE = {WEIGHTS, CONFIG, FINGERPRINT, RUN_CONFIG, CARD}


def start_router(
    export: Path, corpora: Sequence[str], target: Path, settings: StartSettings,
    keep: Path | None = None, placed: Placement = ON_CPU,
) -> dict[str, Any]:  # fmt: skip
    """Write `target` with a router that whitens samples of corpora. Returns a report.

    keep: a folder for chunk means, which the next start or fit then need not compute. placed: see
    load_export.
    """
    began, loaded = time.monotonic(), load_export(export, placed)
    config = settings.applied(loaded.model.config)
    _prepare(target)
    share = max(1, settings.passages // len(corpora))
    sampled = [
        read_examples(source, loaded.tokenizer, limit=share, seed=settings.seed)
        for source in corpora
    ]
    means = joined(
        [kept_document_means(loaded, s.documents, config.router_layers, keep) for s in sampled]
    )
    fingerprint = with_router(export, target, config, started(config, means.rows))
    return {
        **_described(target, config),
        "documents": len(means),
        "chunks": int(means.cu[-1]),
        "seconds": round(time.monotonic() - began, 1),
        "fingerprint": fingerprint,
    }


def fit_router(
    export: Path, corpora: Sequence[str], target: Path, split: str, settings: FitSettings,
    keep: Path | None = None, placed: Placement = ON_CPU,
) -> dict[str, Any]:  # fmt: skip
    """Write `target` with the router fitted to questions about corpora. Returns a report.

    split: of datasets' questions, or "self-made". keep, placed: as in start_router.
    """
    began, loaded = time.monotonic(), load_export(export, placed)
    config = loaded.model.config
    check_pooled(config, f"the router of {export}")
    _prepare(target)
    given = [
        _drawn(read_examples(source, loaded.tokenizer, split, seed=settings.seed), settings)
        for source in corpora
    ]
    cached = [cached_examples(loaded, each, keep) for each in given]
    fitted = fit(config, router_projections(export), cached, settings)
    fingerprint = with_router(export, target, config, fitted.weights)
    return {
        **_described(target, config),
        "pairs": {each.name: len(each.pairs) for each in given},
        "settings": asdict(settings) | {"split": split},
        "looks": [{"step": step, "held_out": found} for step, found in fitted.looks],
        "best_step": fitted.best,
        "fit_seconds": fitted.seconds,
        "seconds": round(time.monotonic() - began, 1),
        "fingerprint": fingerprint,
    }


def probe_layers(
    export: Path,
    corpus: str,
    split: str,
    settings: ProbeSettings,
    placed: Placement = ON_CPU,
) -> dict[str, Any]:
    """How well an untrained router finds in every layer, and which layers together. A report.

    {"layers": [{"layer", "recall": [@1, @5, @16]}, ...], "chosen": [layer, ...], "vote": [...]}:
    all layers in one pass; chosen one after another, each the one that helps the vote most.
    """
    loaded = load_export(export, placed)
    everywhere = settings.applied(loaded.model.config)
    given = read_examples(
        corpus, loaded.tokenizer, split, limit=settings.passages, seed=settings.seed
    )
    every = max(1, len(given.pairs) // settings.questions)
    some = replace(given, pairs=given.pairs[::every][: settings.questions])
    cached = cached_examples(loaded, some, None, range(everywhere.layers))
    weights = started(everywhere, cached.documents.rows)
    pairs = {
        layer: tuple(weights[name] for name in projection_names(layer))
        for layer in range(everywhere.layers)
    }

    def found(layers: Sequence[int]) -> list[float]:
        return recalls(everywhere, {layer: pairs[layer] for layer in layers}, cached)

    alone = {layer: found([layer]) for layer in pairs}
    chosen: list[int] = []
    vote = [0.0] * len(RECALL_AT)
    for _ in range(min(_VOTERS, everywhere.layers)):
        tried = {layer: found([*chosen, layer]) for layer in pairs if layer not in chosen}
        best = max(tried, key=lambda layer: sum(tried[layer]))
        if chosen and sum(tried[best]) <= sum(vote):
            break
        chosen, vote = [*chosen, best], tried[best]
    return {
        "documents": len(given.documents),
        "questions": len(some.pairs),
        "layers": [{"layer": layer, "recall": recall} for layer, recall in alone.items()],
        "chosen": sorted(chosen),
        "vote": vote,
    }


def with_router(
    source: Path, target: Path, config: ModelConfig, router: Mapping[str, Tensor]
) -> dict[str, str]:
    """Write the export `target`: `source` with the router that `config` describes.

    router: its weights by published name. Everything else is copied. Returns the new fingerprint.
    """
    try:
        with files.whole(target) as folder:
            folder.mkdir()
            return _write_with_router(source, folder, config, router)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error


def _write_with_router(
    source: Path, folder: Path, config: ModelConfig, router: Mapping[str, Tensor]
) -> dict[str, str]:
    with safe_open(source / WEIGHTS, framework="pt") as stored:
        planned = {}
        for name, shape in weight_shapes(config).items():
            own = torch.float32 if name in router else None
            planned[name] = own or FORMS[stored.get_slice(name).get_dtype()], shape

        def weights() -> Iterator[tuple[str, Tensor]]:
            for name in planned:
                yield name, router[name].float() if name in router else stored.get_tensor(name)

        write_weights(folder / WEIGHTS, planned, weights())
        files.replace_file(folder / CONFIG, json.dumps(to_published(config), indent=2) + "\n")
        for path in source.iterdir():
            if path.is_file() and path.name not in _MADE:
                shutil.copy(path, folder)
        if (card := source / CARD).is_file():
            files.replace_file(folder / CARD, rerouted(card.read_text(), config))
        return seal(folder)


def router_projections(export: Path) -> Projections:
    """As they are stored: a model that computes in bfloat16 has rounded ones."""
    config = from_published(json.loads((export / CONFIG).read_text()), "serving")
    with safe_open(export / WEIGHTS, framework="pt") as stored:
        return {
            layer: tuple(stored.get_tensor(name).float() for name in projection_names(layer))
            for layer in config.router_layers
        }


def cached_examples(
    loaded: LoadedModel,
    examples: RouterExamples,
    keep: Path | None,
    layers: Sequence[int] | None = None,
) -> CachedExamples:
    """The means of documents and questions in some layers (None: those with a router)."""
    layers = layers or loaded.model.config.router_layers
    return CachedExamples(
        examples.name,
        kept_document_means(loaded, examples.documents, layers, keep),
        kept_question_means(loaded, [pair.question for pair in examples.pairs], layers, keep),
        tuple(pair.documents for pair in examples.pairs),
    )


def _drawn(examples: RouterExamples, settings: FitSettings) -> RouterExamples:
    """With so many of its questions."""
    if settings.pairs is None or settings.pairs >= len(examples.pairs):
        return examples
    chosen = random.Random(settings.seed).sample(examples.pairs, settings.pairs)
    return replace(examples, pairs=tuple(chosen))


def _described(target: Path, config: ModelConfig) -> dict[str, Any]:
    return {
        "target": str(target),
        "layers": list(config.router_layers),
        "reads": list(config.reading_layers),
        "key_heads": config.router_key_heads,
        "head_dim": config.router_head_dim,
    }


def _prepare(target: Path) -> None:
    """Refuses a target that cannot be written, before anything is computed for it."""
    if target.exists():
        raise CheckpointError(f"{target} exists: remove it, or give another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
