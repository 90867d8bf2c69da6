"""Whitened starts: what they do to the means they are made of."""

import torch

from msa_train.model.weights import projection_names
from msa_train.router.whitening import started, whitening
from tests.batches import tiny_config


def drawn(rows, width, seed=0):
    """Means with a few huge directions and a common offset, as real ones have."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.logspace(2, -1, width)
    return torch.randn(rows, width, generator=random) * scales + 5


def test_whitened_means_have_the_unit_matrix_as_second_moment():
    means = drawn(4000, 12)
    white = means @ whitening(means).T
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(12), rtol=0, atol=1e-3)


def test_the_largest_directions_come_first_and_noise_is_not_blown_up():
    means = drawn(500, 6)
    means[:, 5] = means[:, 4]  # one direction less than dimensions
    lengths = whitening(means).norm(dim=1)
    assert torch.equal(lengths, lengths.sort().values)
    assert float(lengths[-1] / lengths[0]) <= 1001  # 1e-6 of the largest variance


def test_queries_and_keys_start_alike_in_every_shape():
    means = {0: drawn(300, 32), 2: drawn(300, 32, 1)}
    own = tiny_config("none", layers="0,2", key_heads=3, head_dim=5, query_reduce="pooled")
    weights = started(own, means)
    for layer, rows in means.items():
        queries, keys = (weights[name] for name in projection_names(layer))
        assert torch.equal(queries, keys) and keys.shape == (15, 32)
        expected = whitening(rows)[:15]  # the principal directions, dealt to three heads
        assert torch.equal(keys.unflatten(0, (3, 5)).transpose(0, 1).flatten(0, 1), expected)


def test_a_router_in_the_backbones_shape_repeats_each_key_head_for_its_queries():
    config = tiny_config("none", layers="1", query_reduce="pooled")  # 4 heads, 2 of keys
    weights = started(config, {1: drawn(300, 32)})
    queries, keys = (weights[name].unflatten(0, (-1, 8)) for name in projection_names(1))
    assert torch.equal(queries, keys[[0, 0, 1, 1]])


def test_a_router_wider_than_the_states_has_empty_rows():
    config = tiny_config("none", layers="1", key_heads=3, head_dim=12, query_reduce="pooled")
    _, keys = started(config, {1: drawn(300, 32)}).values()
    assert keys.shape == (36, 32) and int((keys == 0).all(1).sum()) == 4
