"""The Triton kernels of scores: interpreted, compiled for GPUs, and what they refuse."""

import pytest
import torch
from msa_kernels import KernelError, scores_triton

from tests.kernels.triton_cases import (
    FLOAT32,
    SHARED_BYTES,
    Launch,
    compiled,
    run_interpreted,
    shared_bytes,
)

WITH_PLACE = {"PLACE": True, "SPLIT": False, "HEAD": 0}
QUANTISED = {"PLACE": False, "SPLIT": True, "HEAD": 128}
MAXIMA = scores_triton.document_maxima
VALUES = scores_triton.SUM_VALUES
HITS = {"ROWS": scores_triton.SUM_ROWS, "ENTRIES": scores_triton.SUM_ENTRIES, "V": VALUES}
LAUNCHES = {
    "document_maxima": Launch(MAXIMA, WITH_PLACE, "score"),
    "document_maxima_split": Launch(MAXIMA, {**WITH_PLACE, "SPLIT": True}, "score"),
    "document_maxima_float32": Launch(MAXIMA, {**WITH_PLACE, "V": 32}, "score", FLOAT32),
    "document_maxima_int8": Launch(MAXIMA, QUANTISED, "score", {"keys": "*i8"}),
    "document_maxima_fp8": Launch(MAXIMA, QUANTISED, "score", {"keys": "*fp8e4nv"}),
    "entry_maxima": Launch(scores_triton.entry_maxima, {"SPLIT": False}, "score"),
    "sum_runs": Launch(scores_triton.sum_runs, {"WEIGHTED": True, "V": VALUES}),
    "sum_hits": Launch(scores_triton.sum_hits, HITS),
}


def test_kernels_match_the_reference():
    run_interpreted("test_scores.py")


@compiled(LAUNCHES)
def test_kernels_compile_for_gpus(launch, capability):
    assert shared_bytes(launch, capability) < SHARED_BYTES[capability]


def test_places_that_32_bits_cannot_hold_are_refused():
    keys = torch.empty(1_562_500, 1, device="meta")  # 100M memory tokens
    assert scores_triton.token_bits(torch.empty(2047, 1, device="meta"), keys) == 11
    with pytest.raises(KernelError, match="2048 query tokens times 1562500 chunks are too many"):
        scores_triton.token_bits(torch.empty(2048, 1, device="meta"), keys)
