"""Where a memory's bytes are kept and in which form: settings alone, which need no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from msa_train.errors import ConfigError

KeyForm = Literal["stored", "float32", "bfloat16", "int8", "fp8"]
KEY_FORMS: tuple[KeyForm, ...] = get_args(KeyForm)
States = Literal["mapped", "host"]


def flag(default: Any, help: str, **more: str | None) -> Any:
    """A field that is a flag of commands; more: see msa_train/commands/flags.py."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class TierSettings:
    """keys: the form in which router keys are searched. states: where pooled K and V are kept.
    hot_mb: documents' states kept on the device, in MiB (0: none). prefetch: fetch the documents
    that a layer chose for the layers above it."""

    keys: KeyForm = flag(
        "stored",
        "form of the router keys that are searched: stored (as in the bank), float32, bfloat16, "
        "int8, fp8; answers are those of full precision in every form",
    )
    states: States = flag(
        "mapped", "pooled K and V: mapped (from disk), or host (copied to host memory)"
    )
    hot_mb: float = flag(256.0, "of documents' states kept on the device, per bank", metavar="MB")
    prefetch: bool = True

    def __post_init__(self) -> None:
        for name, known in (("keys", KEY_FORMS), ("states", get_args(States))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}"
                )
        if not 0 <= self.hot_mb < math.inf:
            raise ConfigError(f"hot_mb is {self.hot_mb}: give 0 or more")
