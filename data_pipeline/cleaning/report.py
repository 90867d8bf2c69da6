"""What was found, by which rule, with a few examples of each."""

from __future__ import annotations

from typing import Any

_SHOWN = 200


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


class Findings:
    """Counts by rule, and the first `examples` of each."""

    def __init__(self, examples: int):
        self._limit = examples
        self._found: dict[str, dict[str, Any]] = {}

    def note(self, rule: str, **example: Any) -> None:
        entry = self._found.setdefault(rule, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < self._limit:
            entry["examples"].append(
                {k: shorten(v) if isinstance(v, str) else v for k, v in example.items()}
            )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {rule: self._found[rule] for rule in sorted(self._found)}
