"""msa_train: train, export and serve Memory Sparse Attention models."""

import warnings

__version__ = "0.1.0"

# Optional GPU packages that are missing, and what these libraries deprecate in themselves, are no
# news to a user here; the filters must stand before the first import of any of them.
for _package in ("megatron", "deepspeed", "torch.distributed", "torch.jit"):
    warnings.filterwarnings("ignore", module=_package.replace(".", r"\."))
