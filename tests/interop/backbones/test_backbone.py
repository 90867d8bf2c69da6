"""What a backbone must hold, compared with what its architecture has."""

import pytest
import torch

from msa_train.errors import CheckpointError
from msa_train.interop.backbones.backbone import PretrainedBackbone, StoredWeight


class Held(PretrainedBackbone):
    name = "held"

    def __init__(self, **shapes):
        self.stored = {n: StoredWeight(shape, torch.float32, "F32") for n, shape in shapes.items()}

    def weights(self):
        return iter(())


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (Held(a=(2, 3)), r"has no weight b \(1 are missing\)"),
        (Held(a=(2, 3), b=(4,), c=(1,)), "has 1 weights that its architecture .* such as c"),
        (Held(a=(2, 3), b=(5,)), r"has b of shape \[5\], by its config\.json \[4\]"),
    ],
)
def test_what_does_not_fit_is_named(held, words):
    with pytest.raises(CheckpointError, match=f"held {words}"):
        held.check({"a": (2, 3), "b": (4,)})


def test_what_fits_passes():
    Held(a=(2, 3), b=(4,)).check({"b": (4,), "a": (2, 3)})
