"""What others do on the same machine: FAISS's flat index, and attention over all tokens."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.protocol import prompt_pieces
from msa_train.bench.floor import multiply, read_all
from msa_train.bench.memory.banks import Load
from msa_train.bench.memory.generate import generate_bank, read_questions
from msa_train.bench.memory.layer import LAYER, Rank, layer_searcher, unit_keys, unit_query
from msa_train.bench.memory.sizes import Sizes
from msa_train.bench.runner import in_process, in_turns, log, process_gb, seconds
from msa_train.errors import MissingDependencyError
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.live import LiveBank
from msa_train.model.attention import self_attention
from msa_train.model.batch import positions_within
from msa_train.model.config import RouterConfig
from msa_train.model.decoder import MSADecoder

_TOKENS, _TOP_K, _WIDTH, _HEADS = 32, 16, 64, 2


def faiss_flat(sizes: Sizes) -> dict[str, Any]:
    """IndexFlatIP and ours over the same float32 vectors, in one process, in turns."""
    log(f"memory: FAISS over {sizes.vectors:,} vectors")
    return in_process(_faiss, sizes)


def _faiss(sizes: Sizes) -> dict[str, Any]:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "bench memory compares with FAISS: pip install 'msa-train[bench]'"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    rank = Rank("float32", 0, sizes.vectors, sizes.vectors, _WIDTH, _HEADS, (_TOKENS,))
    keys, query = unit_keys(rank), unit_query(_TOKENS, rank)
    cu, start = torch.arange(len(keys) + 1), process_gb()["resident"]
    searcher = layer_searcher(keys, cu, _HEADS, RouterConfig(top_k=_TOP_K))
    ours = process_gb()["resident"]
    index = faiss.IndexFlatIP(_WIDTH)
    index.add(keys.numpy())
    theirs = process_gb()["resident"]
    rows, query_cu = query.numpy(), torch.tensor([0, _TOKENS])
    times = in_turns(
        {
            "ours": lambda: searcher.best(LAYER, query, query_cu, _TOP_K),
            "faiss": lambda: index.search(rows, _TOP_K),
            "read": read_all([keys]),
            "gemm": multiply([keys], query),
        },
        sizes.repeats,
    )
    found = searcher.best(LAYER, query, query_cu, _TOP_K).places[0].tolist()
    best, floor = {name: min(each) for name, each in times.items()}, ("read", "gemm")
    ours_ms, faiss_ms = (statistics.median(times[name]) for name in ("ours", "faiss"))
    return {
        "vectors": sizes.vectors,
        "width": _WIDTH,
        "query_vectors": _TOKENS,
        "ours_ms": round(ours_ms, 2),
        "faiss_ms": round(faiss_ms, 2),
        "ratio": round(faiss_ms / ours_ms, 2),
        "floor_ms": round(max(best[name] for name in floor), 2),
        "vectors_gb": round(keys.nbytes / 1e9, 3),
        "ours_added_gb": round(ours - start, 3),  # searched where they lie
        "faiss_added_gb": round(theirs - ours, 3),  # its index is a copy
        "same_documents": found == _by_max(*index.search(rows, _TOP_K)),
        "ours_computes": f"the best {_TOP_K} documents by their largest product with any token",
        "faiss_computes": f"the best {_TOP_K} vectors of each token",
        "threads": torch.get_num_threads(),
    }


def _by_max(scores: Any, places: Any) -> list[int]:
    """The best documents by max over tokens, from each token's best: the same ones."""
    best: dict[int, float] = {}
    for score, place in zip(scores.ravel().tolist(), places.ravel().tolist(), strict=True):
        best[place] = max(score, best.get(place, score))
    return sorted(best, key=lambda place: (-best[place], place))[:_TOP_K]


def dense_ttft(load: Load, sizes: Sizes) -> list[dict[str, Any]]:
    """Time to the first token: attention over all tokens, beside a memory of the same size."""
    rows = []
    for tokens in sizes.dense:
        log(f"memory: dense attention over {tokens:,} tokens")
        with tempfile.TemporaryDirectory(prefix="msa-bench-") as folder:
            ours = in_process(_first_token, load, Path(folder) / "bank", tokens, sizes)
        dense = in_process(_dense_first_token, load, tokens)
        ratio = round(dense["dense_s"] / ours["ours_s"], 1)
        rows.append({"tokens": tokens, **dense, **ours, "ratio": ratio})
    return rows


@torch.inference_mode()
def _first_token(load: Load, path: Path, tokens: int, sizes: Sizes) -> dict[str, Any]:
    model, tokenizer, fingerprint = load()
    generate_bank(model, tokenizer, fingerprint, path, tokens, sizes.planted, sizes.sample)
    live = LiveBank(path, model, fingerprint)
    question = prompt_pieces(read_questions(path)[0].question)

    def first() -> None:
        model.logits(prefill_pieces(model, tokenizer, live.view, [question]).last).argmax()

    times = in_turns({"first": first}, sizes.repeats)["first"]
    live.close()
    return {
        "ours_s": round(statistics.median(times) / 1e3, 5),
        "ours_rss_gb": process_gb()["resident"],
        "threads": torch.get_num_threads(),
    }


@torch.inference_mode()
def _dense_first_token(load: Load, tokens: int) -> dict[str, Any]:
    model, tokenizer, _ = load()
    given = torch.randint(tokenizer.vocab_size, (tokens,)).to(model.device)
    dense(model, given[: min(tokens, 256)]).cpu()
    took, _ = seconds(lambda: dense(model, given).cpu())  # which waits for a GPU
    return {"dense_s": round(took, 3), "dense_rss_gb": process_gb()["peak"]}


def dense(model: MSADecoder, tokens: Tensor) -> Tensor:
    """Logits [vocabulary] after tokens [N]: the backbone, every token attending to all before."""
    cu = torch.tensor([0, len(tokens)], device=tokens.device)
    hidden = model.run(tokens, positions_within(cu), lambda layer, h, x: self_attention(x, cu))
    return model.logits(hidden[-1:])[0]
