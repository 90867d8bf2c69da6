"""The Triton kernels of gradients' sums, interpreted, beside loops."""

import pytest
import torch
from msa_kernels import cumulative
from msa_kernels.dispatch import interpreting

from tests.kernels.triton_cases import run_interpreted

WIDTH = 130  # more than a program adds up


def test_sums_equal_loops():
    if not interpreting():
        run_interpreted("test_sums_triton.py", "by_chunk or by_row")


@pytest.mark.skipif(not interpreting(), reason="runs in Triton's interpreter, by the test above")
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_by_chunk(weighted):
    from msa_kernels.sums_triton import sum_into_chunks

    source, like = torch.randn(9, WIDTH), torch.empty(6, WIDTH)
    rows, chunks = torch.randint(9, (40,)), torch.randint(-1, 6, (40,))
    weights = torch.randn(40) if weighted else None
    expected = torch.zeros(6, WIDTH)
    for entry, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
        if chunk >= 0:
            expected[chunk] += source[row] * (weights[entry] if weighted else 1)
    found = sum_into_chunks(source, rows, weights, tuple(chunks.sort(stable=True)), like)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not interpreting(), reason="runs in Triton's interpreter, by the test above")
def test_sums_by_row():
    from msa_kernels.sums_triton import sum_into_rows

    counts, entries = torch.tensor([40, 0, 3]), torch.tensor([50, 0, 7])
    cu, entry_cu = cumulative(counts), cumulative(entries)
    source, like = torch.randn(5, WIDTH), torch.empty(43, WIDTH)
    rows = torch.cat([torch.randint(0, 40, (50,)), torch.randint(40, 43, (7,))])
    rows[::9] = -1
    chunks, weights = torch.randint(5, (57,)), torch.randn(57)
    chunks[rows < 0] = -1
    expected = torch.zeros(43, WIDTH)
    for row, chunk, weight in zip(rows, chunks, weights, strict=True):
        if row >= 0:
            expected[row] += weight * source[chunk]
    span = entry_cu[:-1], entry_cu[1:]
    found = sum_into_rows(source, chunks, weights, rows, span, cu, like)
    torch.testing.assert_close(found, expected)
