"""The SentencePiece tokenizer of models trained here, as transformers calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_pipeline.protocol import CONTROL_TOKENS, IM_END
from data_pipeline.tokenizer import MODEL_FILE, Tokenizer, load_tokenizer
from data_pipeline.tokenizer.sentencepiece import SentencePieceTokenizer


class MSATokenizer(PreTrainedTokenizer):
    """Text to the ids that our own tokenizer gives, and back without a loss.

    Control tokens written in text become control tokens, as with every tokenizer of transformers
    (`split_special_tokens=True` takes them as text). A backbone's export has the backbone's
    tokenizer, which transformers opens itself.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}  # noqa: RUF012 (as the base class has it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **settings: Any):
        model = Path(vocab_file).read_bytes()
        self._held = SentencePieceTokenizer(model)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        settings.setdefault("eos_token", IM_END)
        settings.setdefault("pad_token", self._pieces.id_to_piece(self._held.pad_id))
        settings.setdefault("extra_special_tokens", list(CONTROL_TOKENS))
        settings.setdefault("padding_side", "left")
        super().__init__(**settings)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *inputs: Any, **settings: Any
    ) -> PreTrainedTokenizerBase:
        """The tokenizer of an export. Raises DataError where there is none."""
        folder = Path(pretrained_model_name_or_path)
        held = load_tokenizer(folder)
        if not isinstance(held, SentencePieceTokenizer):
            return PreTrainedTokenizerFast.from_pretrained(
                folder, *inputs, **_special(held) | settings
            )
        for name in [name for name in settings if name.startswith("_") or name == "revision"]:
            del settings[name]  # where a file was downloaded from
        return cls(str(folder / MODEL_FILE), name_or_path=str(folder), **settings)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> tuple[str, ...]:
        """The export's own two files, byte for byte."""
        self._held.save(save_directory)
        return tuple(str(Path(save_directory) / name) for name in self._held.files())

    @property
    def vocab_size(self) -> int:
        return self._held.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._convert_id_to_token(i) for i in self._held.encode_text(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._held.decode(map(self._convert_token_to_id, tokens))


def _special(held: Tokenizer) -> dict[str, str]:
    """For a backbone's folder without tokenizer_config.json."""
    found = {"pad_token": held.decode([held.pad_id]), "padding_side": "left"}
    if len(held.control_ids(IM_END)) == 1:
        found["eos_token"] = IM_END
    return found
