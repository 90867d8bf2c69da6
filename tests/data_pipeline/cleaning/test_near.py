"""Near-duplicates: what brute force finds, and no pair below the threshold."""

import random

import pytest

from data_pipeline.cleaning.near import NearIndex, Sketcher, jaccard, shingles
from data_pipeline.cleaning.text import words
from tests.data_pipeline.cleaning.conftest import sentence


def variants(rng, bases=12, each=6, length=60):
    """Texts in families: a base, and copies of it with some words changed."""
    for base in range(bases):
        text = sentence(base, length).split()
        yield " ".join(text)
        for _ in range(each):
            changed = list(text)
            for _ in range(rng.randrange(4)):
                changed[rng.randrange(length)] = f"new{rng.random()}"
            yield " ".join(changed)


def brute(texts, threshold):
    """text -> the first kept text it equals, or nearly; Jaccard of sets of strings."""
    kept = []
    stands = []
    for place, text in enumerate(texts):
        tokens = words(text)
        grams = {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}
        for other, theirs in kept:
            if len(grams & theirs) / len(grams | theirs) >= threshold:
                stands.append(other)
                break
        else:
            kept.append((place, grams))
            stands.append(place)
    return stands


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_index_finds_what_brute_force_finds(folder, threshold, seed):
    rng = random.Random(seed)
    texts = list(variants(rng))
    rng.shuffle(texts)
    made = folder().make({str(i): text for i, text in enumerate(texts)})
    out, _ = made.clean(near=threshold)
    expected = brute(texts, threshold)
    assert out.ids() == [str(i) for i, stands in enumerate(expected) if stands == i]
    assert len(out.ids()) < len(texts)


def test_jaccard_is_that_of_the_sets():
    one, other = shingles(list("abcdefgh")), shingles(list("abcdefgz"))
    assert jaccard(one, other) == 3 / 5
    assert jaccard(shingles([]), shingles([])) == 0
    assert jaccard(shingles(["a"]), shingles(["a"])) == 1


def test_the_threshold_is_honest():
    """A candidate below the threshold is no duplicate; the lowest number above it is found."""
    sketcher = Sketcher(0.8)
    index = NearIndex(sketcher)
    text = sentence(0, 60).split()
    near, far = [*text[:-3], "x", "y", "z"], [*text[:-12], *"abcdefghijkl"]
    for number, tokens in enumerate((far, near, near)):
        grams = shingles(tokens)
        index.add(number, grams, sketcher.signature(grams))
    grams = shingles(text)
    number, similarity = index.find(grams, sketcher.signature(grams))
    assert number == 1 and similarity == jaccard(grams, shingles(near)) >= 0.8
