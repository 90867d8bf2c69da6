"""config.json of an export as a configuration of transformers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from msa_train.interop.published_config import from_published
from msa_train.model.config import ModelConfig


class MSAConfig(PreTrainedConfig):
    """The published config.json (SPEC section 6): geometry under the usual names, and ours.

    msa_config: the published memory settings. msa_train: everything, under our own key. What
    counts is `decoder_config`; a key that was changed here and not there is refused when it is
    asked for.
    """

    model_type = "msa"

    msa_config: dict[str, Any] | None = None
    msa_train: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int | None = None

    def __post_init__(self, **others: Any) -> None:
        super().__post_init__(**others)
        rotation = self.rope_parameters or {}
        if self.max_position_embeddings is None and "factor" in rotation:
            # The format does not say; transformers wants it beside stretched positions.
            trained = rotation["original_max_position_embeddings"]
            self.max_position_embeddings = int(trained * rotation["factor"])

    @property
    def decoder_config(self) -> ModelConfig:
        """What the decoder is made of. Raises CheckpointError, naming the key, as its reader."""
        common = PreTrainedConfig().to_dict().keys() - {"architectures", "model_type"}
        raw = {key: value for key, value in self.to_dict().items() if key not in common}
        given = {key: value for key, value in raw.items() if value is not None}
        return from_published(given, "serving")
