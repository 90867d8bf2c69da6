"""Tokenizers that never read a control token out of text (SPEC section 4).

base.py says what a tokenizer is, sentencepiece.py and huggingface.py are the two kinds, load.py
tells them apart. Importing the room loads neither library.
"""

from data_pipeline.tokenizer.base import (
    FILES,
    METADATA_FILE,
    MODEL_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TokenizedPieces,
    Tokenizer,
    TokenizerConfig,
)
from data_pipeline.tokenizer.load import load_tokenizer

__all__ = [
    "FILES",
    "METADATA_FILE",
    "MODEL_FILE",
    "SETTINGS_FILE",
    "TEMPLATE_FILE",
    "TokenizedPieces",
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
]
