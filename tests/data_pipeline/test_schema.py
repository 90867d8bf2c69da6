import pytest

from data_pipeline.errors import DataError
from data_pipeline.schema import Context, Document, Piece, Query, Role, Sample


def sample():
    documents = (Document(0, "zero"), Document(7, "sieben — 七", "id", "title"))
    response = (
        Piece("[7]", label=True),
        Piece("<|object_ref_end|>", Role.RESPONSE, control=True, label=True),
    )
    context = Context("which?", "retrieve", response, (7,), (0,), rounds=2)
    return Sample(documents, (context,), "here")


def test_a_sample_comes_back_from_its_bytes():
    assert Sample.from_bytes(sample().to_bytes()) == sample()


def test_defaults_are_left_out_of_the_json():
    assert sample().to_json()["documents"][0] == {"number": 0, "text": "zero"}


def test_a_query_comes_back_from_json():
    query = Query("q", ("a, b",), (1, 5), ("a", "b"), "id", ((5,), (1,)), (7,))
    assert Query.from_json(query.to_json()) == query


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"documents": 3}', b"\xff", b'{"contexts": []}'])
def test_bytes_that_are_no_sample_are_refused(data):
    with pytest.raises(DataError, match="not a sample"):
        Sample.from_bytes(data)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Document(-1, "x"), "number -1"),
        (lambda: Query("q", (), (1, 2), steps=((1,),)), "steps of"),
        (lambda: Query("q", ("a",), (2, 1)), "ascending"),
        (lambda: Query("q", ("a",), (1, 1)), "ascending"),
        (lambda: Context("q", "guess", ()), "'guess'"),
        (lambda: Context("q", "retrieve", (), (1, 2), (2,)), r"\[2\].*positive and masked"),
        (lambda: Sample((Document(2, "a"), Document(1, "b")), ()), "ascending"),
        (lambda: Sample((Document(1, "a"), Document(1, "b")), ()), "ascending"),
        (
            lambda: Sample((Document(1, "a"),), (Context("q", "retrieve", (), (1, 9)),)),
            r"documents \[9\]",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_public_names():
    import data_pipeline

    assert all(hasattr(data_pipeline, name) for name in data_pipeline.__all__)
