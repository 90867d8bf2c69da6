"""Our KV cache as transformers sees it."""

import pytest
import torch

from msa_train.errors import ConfigError
from tests.interop.huggingface.folders import batch, imported, opened


def test_it_counts_columns_and_reorders_rows():
    model, given = opened(imported("llama")[1]), batch()
    cache = model(**given).cache
    assert (len(cache), cache.batch_size, cache.get_seq_length()) == (4, 3, 11)
    assert cache.is_initialized and not cache.is_compileable and not any(cache.is_linear)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    following = torch.tensor([[7], [8], [9]])
    found = model(following, cache=cache).logits
    swapped = {name: each[[2, 0, 0]] for name, each in given.items()}
    expected = model(following, cache=model(**swapped).cache).logits
    torch.testing.assert_close(found, expected)


def test_what_it_cannot_do_is_refused():
    cache = opened(imported("llama")[1])(**batch()).cache
    assert cache.get_max_length() == -1 and not cache.is_croppable
    for call in (cache.reset, lambda: cache.crop(1), lambda: cache.batch_repeat_interleave(2)):
        with pytest.raises(ConfigError, match="only grows and is reordered"):
            call()
