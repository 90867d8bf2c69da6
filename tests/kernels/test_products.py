"""Narrow products are off by no more than they say, whatever the numbers; wide ones are exact."""

import pytest
import torch
from msa_kernels import PreparedKeys, prepared_scores, products, quantise


@pytest.fixture(autouse=True)
def every_feature(monkeypatch):
    """As if this processor had them all: the operations exist everywhere, only slower."""
    monkeypatch.setattr(products, "_processor_has", lambda *features: True)


def spread(rows, width, seed):
    """Rows of very different lengths, some with one large value."""
    gen = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, width, generator=gen) * torch.logspace(-6, 3, rows)[:, None]
    drawn[::3, 0] *= 50
    return drawn


def found_by(product, query, chunks):
    out = torch.empty(len(query), chunks)
    product.multiply(product.prepared(query), 0, chunks, out)
    return out


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_a_product_is_off_by_no_more_than_its_rounding(form, rows):
    keys, query = spread(200, 256, 1), spread(rows, 256, 2)
    query[0, :7] = 0
    if form == "int8":
        given = quantise(keys, 2, "int8")
        exact = given.dequantised().double()
    else:
        given = keys.bfloat16()
        exact = given.double()
    narrow, wide = products.products_of(given)
    assert 0 < narrow.rounding < 4.1e-3 and wide.rounding == 0 and rows <= narrow.most
    truth = query.double() @ exact.T
    longest = query.double().norm(dim=1)[:, None] * exact.norm(dim=1)
    sums = 256 * 2.0**-23
    for product, most in ((narrow, narrow.rounding + sums), (wide, sums)):
        off = (found_by(product, query, 200).double() - truth).abs()
        assert bool((off <= most * longest).all())


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e3])
def test_float16_products_neither_overflow_nor_lose_small_numbers(size):
    keys, query = (spread(200, 256, 1) / 1e5 * size).half(), spread(5, 256, 2)
    longest = float(keys.double().norm(dim=1).max())
    narrow, _ = products.products_of(keys, longest)
    for row in query.split(1):
        off = found_by(narrow, row, 200).double() - row.double() @ keys.double().T
        most = (narrow.rounding + 256 * 2.0**-23) * max(longest, 1.0) * float(row.double().norm())
        assert float(off.abs().max()) <= most and narrow.most == 1


def test_float16_keys_of_unknown_length_or_few_values_are_widened():
    keys = torch.randn(20, products.GEMV_WIDTH).half()
    for given, longest in ((keys, None), (keys[:, 1:], 40.0)):
        [wide] = products.products_of(given, longest)
        assert isinstance(wide, products.WideProduct)


def test_a_query_of_zeros_scores_nothing():
    keys = torch.randn(20, 256)
    for given in (quantise(keys, 2, "int8"), keys.half()):
        narrow, _ = products.products_of(given, 40.0)
        assert torch.equal(found_by(narrow, torch.zeros(1, 256), 20), torch.zeros(1, 20))


@pytest.mark.parametrize("contexts", [1, 3, 9])
def test_one_vector_per_context_scores_as_by_loops(contexts, monkeypatch):
    monkeypatch.setattr(products, "TILE_CHUNKS", 7)
    monkeypatch.setattr(products, "GEMV_WIDTH", 64)
    counts = [2, 0, 1, 1, 4, 1, 1, 1, 3, 0, 9, 1]
    keys, cu = torch.randn(sum(counts), 64), torch.tensor([0, *counts]).cumsum(0)
    query, query_cu = torch.randn(contexts, 64), torch.arange(contexts + 1)
    for given in (keys, keys.half(), keys.bfloat16(), quantise(keys, 2, "int8")):
        exact = given.dequantised() if hasattr(given, "dequantised") else given
        search = PreparedKeys(given, cu, float(exact.float().norm(dim=1).max()))
        scores = prepared_scores([search], query, query_cu).scores
        most = 1e-5 + search.rounding * float(
            query.norm(dim=1).max() * exact.float().norm(dim=1).max()
        )
        for context in range(contexts):
            for document, (a, b) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
                values = [float(query[context].double() @ exact[c].double()) for c in range(a, b)]
                score = float(scores[context, document])
                assert score == max(values, default=-torch.inf) or abs(score - max(values)) <= most


def test_buffers_are_kept_unless_they_are_large():
    first = products.scratch("test", (8, 4), torch.float32)
    again = products.scratch("test", (4, 4), torch.bfloat16)
    assert again.data_ptr() == first.data_ptr() and again.shape == (4, 4)
    large = products.scratch("test", (products._KEPT_BYTES + 1,), torch.uint8)
    assert products.scratch("test", (8, 4), torch.float32).data_ptr() == first.data_ptr()
    assert large.data_ptr() != first.data_ptr()
