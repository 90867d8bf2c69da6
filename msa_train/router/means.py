"""What a router is made from: means of normed states, of chunks of documents and of questions.

A router key has neither norm nor rotation, so the chunk mean of its projections is the projection
of the chunk mean (SPEC section 8). With one vector per chunk and layer at hand, routers are
started, fitted and compared without the backbone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from msa_kernels import chunk_mean, chunk_offsets, cumulative
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.progress import ProgressBar
from data_pipeline.protocol import prompt_pieces
from data_pipeline.schema import Document
from data_pipeline.tokenizer import Tokenizer
from msa_train.interop.export import LoadedModel
from msa_train.memory.bank.encode import document_batches, in_threads
from msa_train.model.batch import context_positions, positions_within, query_rows
from msa_train.model.config import RouterConfig
from msa_train.model.decoder import MSADecoder

_CONTEXTS = 32  # questions that go through the model at once


@dataclass(frozen=True)
class LayerMeans:
    """Means [C, d] per layer, row by row those of n things: cu [n+1].

    Of documents a row is a chunk; of questions what a pooled query is projected from, one row each.
    """

    rows: dict[int, Tensor]
    cu: Tensor

    def __len__(self) -> int:
        return len(self.cu) - 1


@torch.inference_mode()
def document_means(
    model: MSADecoder, tokenizer: Tokenizer, documents: Sequence[Document], layers: Sequence[int]
) -> LayerMeans:
    """Means of the chunks of documents (ascending number), encoded as for a bank."""
    size, parts, counts = model.config.router.chunk_size, [], []

    @torch.inference_mode()
    def means(batch: tuple[list[Document], list[list[int]]]) -> tuple[dict[int, Tensor], Tensor]:
        cu = cumulative(torch.tensor([len(ids) for ids in batch[1]]))
        packed = torch.tensor([i for ids in batch[1] for i in ids], device=model.device)
        there = cu.to(model.device)
        found = model.observe(
            packed, positions_within(there), there, layers, lambda h: chunk_mean(h, there, size)
        )
        rows = {layer: x.float().cpu() for layer, x in found.items()}
        return rows, chunk_offsets(cu, size).diff()

    batches = document_batches(tokenizer, documents)
    with ProgressBar("chunk means", "documents", len(documents)) as bar:
        for rows, chunks in in_threads(means, batches, model.device):
            parts.append(rows)
            counts.append(chunks)
            bar.advance(len(chunks))
    return _joined(parts, torch.cat(counts))


@torch.inference_mode()
def question_means(
    model: MSADecoder, tokenizer: Tokenizer, questions: Sequence[str], layers: Sequence[int]
) -> LayerMeans:
    """What the pooled queries of questions are projected from, asked as in serving.

    Exact up to the first layer that reads from memory: no memory is read here.
    """
    top_k = model.config.router.top_k

    @torch.inference_mode()
    def means(texts: Sequence[str]) -> dict[int, Tensor]:
        asked = [tokenizer.encode_pieces(prompt_pieces(text)) for text in texts]
        routes = [_up_to_last([role.routes(frame=False) for role in a.roles]) for a in asked]
        cu = cumulative(torch.tensor([len(each) for each in routes])).to(model.device)
        tokens = [t for a, kept in zip(asked, routes, strict=True) for t in a.tokens[: len(kept)]]
        tokens = torch.tensor(tokens, device=model.device)
        is_query = torch.tensor([routing for kept in routes for routing in kept])
        rows, query_cu = query_rows(is_query.to(model.device), cu)
        positions = [
            context_positions(len(kept), a.head_length, top_k)
            for a, kept in zip(asked, routes, strict=True)
        ]
        placed = torch.cat(positions).to(model.device)
        found = model.observe(tokens, placed, cu, layers, lambda h: _means(h[rows], query_cu))
        return {layer: x.cpu() for layer, x in found.items()}

    groups = [questions[i : i + _CONTEXTS] for i in range(0, len(questions), _CONTEXTS)]
    parts = []
    with ProgressBar("question means", "questions", len(questions)) as bar:
        for place, rows in enumerate(in_threads(means, groups, model.device)):
            parts.append(rows)
            bar.advance(len(groups[place]))
    return _joined(parts, torch.ones(len(questions), dtype=torch.int64))


def joined(parts: Sequence[LayerMeans]) -> LayerMeans:
    """The things of all parts, in their order."""
    return _joined([part.rows for part in parts], torch.cat([part.cu.diff() for part in parts]))


def backbone_digest(loaded: LoadedModel) -> str:
    """The same for models whose means are: a backbone and its tokenizer, whatever its router."""
    return _digest(loaded, ())


def kept_document_means(
    loaded: LoadedModel, documents: Sequence[Document], layers: Sequence[int], folder: Path | None
) -> LayerMeans:
    """As document_means, kept in `folder` (None: nowhere) under what they depend on.

    That is the backbone and its tokenizer, the texts and the chunk size, and not the router: a
    router that was fitted finds the means of the one it started from.
    """
    about = (f"{document.number}\0{document.text}\0" for document in documents)

    def make(missing: Sequence[int]) -> LayerMeans:
        return document_means(loaded.model, loaded.tokenizer, documents, missing)

    return _kept(loaded, about, layers, folder, make)


def kept_question_means(
    loaded: LoadedModel, questions: Sequence[str], layers: Sequence[int], folder: Path | None
) -> LayerMeans:
    """As question_means, kept as by kept_document_means; they also depend on top_k (positions)."""
    prompts = (json.dumps([p.to_json() for p in prompt_pieces(text)]) for text in questions)
    about = itertools.chain([f"asked, {loaded.model.config.router.top_k}"], prompts)

    def make(missing: Sequence[int]) -> LayerMeans:
        return question_means(loaded.model, loaded.tokenizer, questions, missing)

    return _kept(loaded, about, layers, folder, make)


def _kept(
    loaded: LoadedModel,
    about: Iterable[str],
    layers: Sequence[int],
    folder: Path | None,
    make: Callable[[Sequence[int]], LayerMeans],
) -> LayerMeans:
    """Means of some layers out of `folder`; those that are missing are made and kept."""
    if folder is None:
        return make(layers)
    key = _digest(loaded, about)
    found: dict[int, Tensor] = {}
    cu = None
    for layer in layers:
        path = folder / f"{key}-layer-{layer}.safetensors"
        with suppress(FileNotFoundError, SafetensorError, KeyError):  # damaged ones are made anew
            stored = load_file(path)
            found[layer], cu = stored["means"], stored["chunk_cu"]
    if missing := [layer for layer in layers if layer not in found]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = make(missing)
            for layer, means in made.rows.items():
                content = save({"means": means, "chunk_cu": made.cu})
                files.replace_file(folder / f"{key}-layer-{layer}.safetensors", content)
        except OSError as error:
            raise DataError(f"{folder} cannot hold means (--means): {error}") from error
        found, cu = found | made.rows, made.cu
    return LayerMeans({layer: found[layer] for layer in layers}, cu)


def _digest(loaded: LoadedModel, about: Iterable[str]) -> str:
    digest = hashlib.sha256()
    config = loaded.model.config
    backbone = asdict(replace(config, router=RouterConfig(chunk_size=config.router.chunk_size)))
    del backbone["answers"]  # how it is asked, which no document's states depend on
    digest.update(
        json.dumps([loaded.fingerprint["tokenizer"], backbone, str(loaded.model.device)]).encode()
    )
    for name, weight in loaded.model.state_dict().items():
        if ".router_" not in name:
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for each in about:
        digest.update(each.encode())
    return digest.hexdigest()[:24]


def _up_to_last(routes: Sequence[bool]) -> Sequence[bool]:
    """Without what stands behind the last query token, which no query sees."""
    length = max((place + 1 for place, routing in enumerate(routes) if routing), default=0)
    return routes[:length] if length else routes


def _means(states: Tensor, cu: Tensor) -> Tensor:
    """[m, d] float32 means of packed rows, zeros where there are none."""
    counts = cu.diff()
    owner = torch.arange(len(counts), device=cu.device).repeat_interleave(counts)
    sums = torch.zeros(len(counts), states.shape[1], device=states.device)
    sums.index_add_(0, owner, states.float())
    return sums / counts.clamp(min=1)[:, None]


def _joined(parts: Sequence[dict[int, Tensor]], counts: Tensor) -> LayerMeans:
    rows = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
    return LayerMeans(rows, cumulative(counts))
