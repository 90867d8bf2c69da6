"""Exports as models of the transformers library: importing this registers them, no remote code.

AutoConfig, AutoModelForCausalLM, AutoTokenizer and pipeline then open the folder of `msa export` or
`msa import` (docs/backbones.md). model.py is the model, over our decoder; asking.py turns what
`generate` is given into requests to a memory, and answers into token ids.
"""

from msa_train.errors import MissingDependencyError

try:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, __version__
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise MissingDependencyError(
        f"transformers cannot be imported ({error}): install it with "
        "`pip install 'msa-train[huggingface]'`"
    ) from error
if "cache" not in CausalLMOutputWithPast.__dataclass_fields__:
    raise MissingDependencyError(
        f"transformers {__version__} calls a cache otherwise: install 5.24 or later with "
        "`pip install 'msa-train[huggingface]'`"
    )

from msa_train.interop.huggingface.asking import MemoryGenerateOutput
from msa_train.interop.huggingface.config import MSAConfig
from msa_train.interop.huggingface.model import MSAForCausalLM
from msa_train.interop.huggingface.tokenizer import MSATokenizer
from msa_train.memory.engine.interleave import InterleaveLimits

__all__ = [
    "InterleaveLimits",
    "MSAConfig",
    "MSAForCausalLM",
    "MSATokenizer",
    "MemoryGenerateOutput",
]

AutoConfig.register(MSAConfig.model_type, MSAConfig)
AutoModelForCausalLM.register(MSAConfig, MSAForCausalLM)
AutoTokenizer.register(MSAConfig, MSATokenizer)
