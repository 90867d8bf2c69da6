"""Rotary positions beyond the trained length: which frequencies they turn by (SPEC section 1).

Two ways are computed, as config.json names them: `llama3` (Llama 3.1's, in its report
arXiv 2407.21783) and `yarn` (arXiv 2309.00071).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from msa_train.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

RopeType = Literal["llama3", "yarn"]

_COMMON = ("rope_type", "factor", "original_max_position_embeddings")
_KEYS: dict[str, tuple[str, ...]] = {
    "llama3": (*_COMMON, "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *_COMMON, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim",
        "truncate",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a backbone were stretched; the words are those of config.json.

    factor: how many times the trained length. original_max_position_embeddings: that length, in
    tokens.
    llama3: waves longer than the length over low_freq_factor turn `factor` times slower, those
    shorter than it over high_freq_factor as ever, those between in proportion.
    yarn: pairs that turn fewer than beta_slow times over the length turn `factor` times slower,
    those that turn more than beta_fast times as ever, those between along a ramp (between whole
    pairs where truncate is set); queries and keys are lengthened by attention_factor, which
    follows from factor, mscale and mscale_all_dim where it is not given.
    """

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.rope_type not in _KEYS:
            raise ConfigError(
                f"model.rope_scaling.rope_type is {self.rope_type!r}: give "
                f"{' or '.join(get_args(RopeType))}"
            )
        for name in ("factor", "original_max_position_embeddings"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"model.rope_scaling.{name} is {getattr(self, name)}: give more than 0"
                )
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"model.rope_scaling.high_freq_factor is {self.high_freq_factor}: give more than "
                f"low_freq_factor ({self.low_freq_factor})"
            )

    @classmethod
    def from_published(
        cls, raw: Mapping[str, Any], trained_length: int | None
    ) -> RopeScaling | None:
        """Of `rope_scaling` or `rope_parameters` of a config.json; None for plain rotation.

        trained_length: max_position_embeddings, the length where none is given beside the factor.
        Raises ConfigError, naming the key, for another type or a key that the type does not have.
        """
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{raw!r} where an object belongs")
        given = {key: value for key, value in raw.items() if value is not None}
        given.pop("rope_theta", None)
        if given.get("partial_rotary_factor") == 1:
            del given["partial_rotary_factor"]
        kind = given.pop("type", None)  # its name of old
        kind = given.pop("rope_type", kind) or "default"
        if kind == "default":
            known = ()
        elif kind in _KEYS:
            known = _KEYS[kind]
        else:
            raise ConfigError(f"rope_type {kind!r}: supported are default, {', '.join(_KEYS)}")
        if unknown := sorted(given.keys() - set(known)):
            raise ConfigError(f"rope_type {kind!r} with the unknown key {unknown[0]!r}")
        if kind == "default":
            return None
        if trained_length is not None:
            given.setdefault("original_max_position_embeddings", trained_length)
        for key, value in given.items():
            if not isinstance(value, int | float):
                raise ConfigError(f"rope_type {kind!r} with {key} {value!r}: it should be a number")
        try:
            return cls(rope_type=kind, **given)
        except TypeError:
            missing = next(key for key in _COMMON[1:] if key not in given)
            raise ConfigError(f"rope_type {kind!r} without {missing}") from None

    def to_published(self) -> dict[str, Any]:
        """As a config.json has it: the keys of its type that are given."""
        found = {key: getattr(self, key) for key in _KEYS[self.rope_type]}
        return {key: value for key, value in found.items() if value is not None}

    def frequencies(self, plain: Tensor, theta: float) -> Tensor:
        """[D/2] radians per position from those without scaling, theta^(-2i/D)."""
        slowed = plain / self.factor
        if self.rope_type == "llama3":
            waves = self.original_max_position_embeddings * plain / (2 * math.pi)
            kept = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        else:
            first, last = self._ramp(len(plain), theta)
            pair = plain.new_ones(len(plain)).cumsum(0) - 1  # 0, 1, 2, ...
            kept = 1 - (pair - first) / (last - first)
        kept = kept.clamp(0, 1)
        return slowed * (1 - kept) + plain * kept

    @property
    def length_factor(self) -> float:
        """What queries and keys are multiplied by."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._lengthened(self.mscale) / self._lengthened(self.mscale_all_dim)
        return self._lengthened(1.0)

    def _lengthened(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1

    def _ramp(self, pairs: int, theta: float) -> tuple[float, float]:
        """The pair of dimensions where slowing begins, and the one from which it is whole."""

        def pair_that_turns(times: float) -> float:
            waves = self.original_max_position_embeddings / (times * 2 * math.pi)
            return pairs * math.log(waves) / math.log(theta)

        first, last = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        return first, last if last != first else last + 0.001
