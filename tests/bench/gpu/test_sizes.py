"""The full sizes are those that are spoken of; toys have the same rows."""

from msa_train.bench.gpu.sizes import FULL, GEOMETRIES, TOY
from msa_train.memory.planner.plan import parameters


def test_geometries_are_those_they_are_called():
    billions = {name: parameters(FULL.geometry(name)) / 1e9 for name in GEOMETRIES}
    assert 4.0 < billions["4B"] < 4.6 and 0.59 < billions["0.6B"] < 0.75
    assert FULL.chunks * FULL.large.router.chunk_size == 100_000_000
    assert FULL.tokens == (1, 16, 32, 64) and not FULL.toy and TOY.toy


def test_documents_divide_what_they_fill():
    for sizes in (FULL, TOY):
        for tokens in (*sizes.trained, sizes.encoded, sizes.encoded // 4):
            assert tokens % sizes.document_tokens == 0 or sizes.toy
        assert all(sizes.together % length == 0 for length in sizes.attended)
        assert all(tokens // sizes.document_tokens > 0 for tokens in sizes.trained)
