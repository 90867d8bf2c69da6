"""Random models are whole, in the dtype asked for."""

import torch

from msa_train.bench.gpu.models import random_decoder, random_reader
from msa_train.bench.gpu.sizes import TOY
from msa_train.model.weights import weight_shapes

CPU = torch.device("cpu")


def test_a_decoder_in_a_dtype_encodes():
    model = random_decoder(TOY.large, CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    pooled = model.encode(torch.arange(20), torch.tensor([0, 20]))
    assert all(bool(states.key.isfinite().all()) for states in pooled.values())
    assert pooled.keys() == {2, 3}


def test_a_reader_has_every_weight():
    read = random_reader(TOY.small, CPU, torch.float32)
    for name, shape in weight_shapes(TOY.small).items():
        weight = read(name)
        assert weight.shape == shape
        assert name.endswith("norm.weight") == bool((weight == 1).all())
