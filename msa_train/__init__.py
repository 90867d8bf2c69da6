"""msa_train: train, export and serve Memory Sparse Attention models."""

__version__ = "0.1.0"
