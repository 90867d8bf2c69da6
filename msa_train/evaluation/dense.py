"""A dense retriever to stand beside a router: a sentence encoder of transformers, as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.progress import ProgressBar
from msa_train.errors import CheckpointError

_BATCH = 64
_TOKENS = 256  # what all-MiniLM-L6-v2 was trained for; longer texts are cut, as its authors do


class DenseRetriever:
    """Embeddings: the mean of a text's last states, of unit length (Reimers and Gurevych 2019)."""

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        if not folder.is_dir():
            raise CheckpointError(f"no sentence encoder: there is no folder {folder}")
        disable_progress_bar()  # of loading 90 MB
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is no sentence encoder: {error}") from error

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """[texts, width] float32, a row of unit length each."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = []
        with ProgressBar("dense retriever", "texts", len(texts)) as bar:
            for first in range(0, len(order), _BATCH):
                chosen = [texts[place] for place in order[first : first + _BATCH]]
                given = self._tokenizer(
                    chosen, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
                )
                states = self._model(**given).last_hidden_state
                real = given["attention_mask"][..., None]
                parts.append(F.normalize((states * real).sum(1) / real.sum(1), dim=-1))
                bar.advance(len(chosen))
        return torch.cat(parts)[torch.tensor(order).argsort()]
