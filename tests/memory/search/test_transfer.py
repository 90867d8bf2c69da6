"""Several tensors in one block: the same values, whatever their shapes and dtypes."""

import torch

from msa_train.memory.search.transfer import block_of, views

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(5),
    torch.randn(2, 3).bfloat16(),
    torch.zeros(0, 4),
    torch.randn(3, 1, 2),
]


def test_a_block_holds_tensors_side_by_side():
    forms = [(x.shape, x.dtype) for x in TENSORS]
    block = block_of(forms)
    for place, x in zip(views(block, forms), TENSORS, strict=True):
        place.copy_(x)
    for found, x in zip(views(block, forms), TENSORS, strict=True):
        assert found.dtype == x.dtype and torch.equal(found, x)
        assert found.storage_offset() * x.itemsize % 16 == 0
        assert found.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
