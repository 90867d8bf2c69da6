"""The reference against plain Python loops over numbers, its gradients by differences."""

import cmath
import itertools
import math

import torch
from hypothesis import given, settings
from msa_kernels import reference
from torch.autograd import gradcheck

from tests.kernels.kernel_cases import attentions, cu, routings

FEW = settings(max_examples=25, deadline=None)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def spans(offsets):
    return list(zip(offsets.tolist(), offsets.tolist()[1:], strict=False))


def test_chunk_mean_against_loops():
    x = torch.randn(21, 3, dtype=torch.float64)
    lengths, size = [5, 0, 1, 8, 7], 4
    rows, begin = [], 0
    for length in lengths:
        for start in range(0, length, size):
            part = [x[begin + t].tolist() for t in range(start, min(start + size, length))]
            rows.append([sum(column) / len(part) for column in zip(*part, strict=True)])
        begin += length
    torch.testing.assert_close(reference.chunk_mean(x, cu(lengths), size), x.new_tensor(rows))


def test_norm_rope_against_loops():
    width, eps = 6, 1e-3
    states = [torch.randn(5, heads, width, dtype=torch.float64) for heads in (3, 1)]
    weights = [torch.randn(width, dtype=torch.float64) for _ in states]
    angle = torch.rand(5, width // 2, dtype=torch.float64) * 100
    outs = reference.norm_rope(*states, *weights, angle.cos(), angle.sin(), eps)
    for x, weight, out in zip(states, weights, outs, strict=True):
        for token, head in itertools.product(range(5), range(x.shape[1])):
            row = x[token, head].tolist()
            root = math.sqrt(sum(value**2 for value in row) / width + eps)
            row = [value / root * w for value, w in zip(row, weight.tolist(), strict=True)]
            for i, turn in enumerate(angle[token].tolist()):
                pair = complex(row[i], row[i + width // 2]) * cmath.exp(1j * turn)
                assert math.isclose(float(out[token, head, i]), pair.real, abs_tol=1e-12)
                second = float(out[token, head, i + width // 2])
                assert math.isclose(second, pair.imag, abs_tol=1e-12)


@given(routings())
@FEW
def test_document_scores_against_loops(case):
    case = case.in_dtype(torch.float64)
    scores = reference.document_scores(*case.arguments())
    documents, banks = spans(case.chunk_cu), spans(case.bank_cu)
    for c, (first, last) in enumerate(spans(case.query_cu)):
        low, high = banks[int(case.context_bank[c])]
        for d, (start, end) in enumerate(documents):
            best = -math.inf
            for chunk in range(start, end) if low <= d < high else ():
                for token in range(first, last):
                    best = max(best, dot(case.query[token], case.keys[chunk]))
            assert math.isclose(float(scores[c, d]), best, abs_tol=1e-12) or scores[c, d] == best


@given(routings())
@FEW
def test_selection_against_loops(case):
    scores = reference.document_scores(*case.arguments())
    values, index = reference.top_documents(scores, 3)
    assert values.shape == (len(scores), min(3, scores.shape[1]))
    for row, chosen in zip(scores.tolist(), index.tolist(), strict=True):
        order = sorted(
            (d for d in range(len(row)) if row[d] > -math.inf), key=lambda d: (-row[d], d)
        )
        assert chosen == (order[:3] + [-1] * 3)[: len(chosen)]
    chunks, index_cu = reference.select_chunks(index, case.chunk_cu)
    documents = spans(case.chunk_cu)
    for (a, b), chosen in zip(spans(index_cu), index.tolist(), strict=True):
        expected = [c for d in sorted(chosen) if d >= 0 for c in range(*documents[d])]
        assert chunks[a:b].tolist() == expected


@given(routings())
@FEW
def test_chunk_scores_against_loops(case):
    case = case.in_dtype(torch.float64)
    count, contexts = len(case.keys), len(case.query_cu) - 1
    index = torch.arange(count).repeat(contexts)
    index_cu = cu([count] * contexts)
    scores = reference.chunk_scores(case.query, case.query_cu, case.keys, index, index_cu).tolist()
    for c, (first, last) in enumerate(spans(case.query_cu)):
        for chunk in range(count):
            expected = [dot(case.query[t], case.keys[chunk]) for t in range(first, last)]
            actual = scores[c * count + chunk]
            assert actual == -math.inf if first == last else abs(actual - max(expected)) < 1e-12


@given(attentions())
@FEW
def test_context_attention_against_loops(case):
    case = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in case.items()
    }
    out = reference.context_attention(**case)
    group = case["q"].shape[1] // case["k"].shape[1]
    per_context = zip(*(spans(case[name]) for name in ("q_cu", "k_cu", "index_cu")), strict=True)
    for c, ((q0, q1), (k0, k1), (s0, s1)) in enumerate(per_context):
        hidden = 0 if case["memory_from"] is None else int(case["memory_from"][c])
        for row in range(q1 - q0):
            for head in range(case["q"].shape[1]):
                query = case["q"][q0 + row, head]
                seen = []  # (logit, value)
                for s in range(s0, s1) if row >= hidden else ():
                    gate = 0.0 if case["bias"] is None else float(case["bias"][s])
                    chunk, kv = int(case["index"][s]), head // group
                    logit = dot(query, case["pooled_k"][chunk, kv]) * case["scale"] + gate
                    seen.append((logit, case["pooled_v"][chunk, kv].tolist()))
                for key in range(k0, k1 - (q1 - q0) + row + 1):
                    logit = dot(query, case["k"][key, head // group]) * case["scale"]
                    seen.append((logit, case["v"][key, head // group].tolist()))
                total = sum(math.exp(logit) for logit, _ in seen)
                expected = [
                    sum(math.exp(logit) / total * value[i] for logit, value in seen)
                    for i in range(len(query))
                ]
                torch.testing.assert_close(out[q0 + row, head], out.new_tensor(expected))


def test_document_attention_is_each_document_alone():
    q, k, v = (torch.randn(11, heads, 4, dtype=torch.float64) for heads in (4, 2, 2))
    out = reference.document_attention(q, k, v, cu([5, 0, 1, 5]), 0.5)
    for start, end in ((0, 5), (5, 6), (6, 11)):
        for row in range(start, end):
            seen = slice(start, row + 1)
            for head in range(4):
                weights = (k[seen, head // 2] @ q[row, head] * 0.5).softmax(0)
                torch.testing.assert_close(out[row, head], weights @ v[seen, head // 2])


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_by_finite_differences():
    torch.manual_seed(1)
    lengths = cu([3, 0, 6])
    assert gradcheck(lambda x: reference.chunk_mean(x, lengths, 4), leaf(9, 2))
    q, k, v = leaf(9, 2, 3), leaf(9, 1, 3), leaf(9, 1, 3)
    assert gradcheck(lambda *x: reference.document_attention(*x, lengths, 0.5), (q, k, v))
    index, index_cu = torch.tensor([1, 3, 1]), cu([2, 0, 1])
    pooled, bias, head = (leaf(4, 1, 3), leaf(4, 1, 3)), leaf(3), torch.tensor([1, 0, 2])

    def attend(q, k, v, pooled_k, pooled_v, bias):
        states = (q, k, v, lengths, lengths, pooled_k, pooled_v)
        return reference.context_attention(*states, index, index_cu, bias, head, 0.5)

    assert gradcheck(attend, (q, k, v, *pooled, bias))
    query, keys, query_cu = leaf(5, 3), leaf(4, 3), cu([2, 0, 3])
    chunk_cu, bank = cu([1, 3]), torch.tensor([0, 0, 0])

    def finite(scores):
        return scores[scores.isfinite()]

    def route(query, keys):
        return finite(reference.document_scores(query, query_cu, keys, chunk_cu, bank, cu([2])))

    def select(query, keys):
        return finite(reference.chunk_scores(query, query_cu, keys, index, index_cu))

    assert gradcheck(route, (query, keys))
    assert gradcheck(select, (query, keys))
