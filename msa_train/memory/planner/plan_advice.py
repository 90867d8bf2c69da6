"""Which other settings a memory that does not fit would fit with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from msa_train.memory.planner.plan import KEY_BYTES, Plan, plan, with_serving

_MOST_CARDS = 64


def would_fit(found: Plan) -> str | None:
    """A sentence: the least change of each kind that fits, and how many cards of the same kind."""
    smaller = _first(found, _smaller(found))
    few_slots = smaller is None or "slots" in smaller
    narrower = _first(found, _narrower(found)) if few_slots else None
    ways = [way for way in (smaller, narrower, _cards(found)) if way]
    return f"What would fit: {', or '.join(ways)}" if ways else None


def _first(found: Plan, candidates: Iterator[dict[str, Any]]) -> str | None:
    for changes in candidates:
        if with_serving(found, **changes).fits:
            return _flags(changes)
    return None


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())


def _smaller(found: Plan) -> Iterator[dict[str, Any]]:
    """Changes beside the keys: K and V left on disk, no hot documents, fewer slots."""
    serving = found.serving
    mapped = [{}] if serving.states == "mapped" else [{}, {"states": "mapped"}]
    cold = [{}, {"hot_mb": 0}] if serving.hot_mb else [{}]
    fewer = [serving.slots >> shift for shift in range(1, serving.slots.bit_length())]
    for slots in ({}, *({"slots": count} for count in fewer)):
        for hot in cold:
            for states in mapped:
                yield {**states, **hot, **slots}


def _narrower(found: Plan) -> Iterator[dict[str, Any]]:
    """Keys that take less than those that are searched now, with as much else as possible."""
    for keys in _forms(found):
        for others in _smaller(found):
            yield {"keys": keys, **others}


def _forms(found: Plan) -> list[str]:
    serving, mapped = found.serving, not found.machine.cards
    now = found.bank.dtype if serving.keys == "stored" else serving.keys
    forms = ["bfloat16"]
    if found.config.router.scoring.certifiable and KEY_BYTES[now] > 1:
        forms.append("int8")
    forms = [form for form in forms if KEY_BYTES[form] < KEY_BYTES[now]]
    # On a CPU the bank's own keys are mapped, and give way.
    return ["stored"] if mapped and serving.keys != "stored" else forms


def _cards(found: Plan) -> str | None:
    cards = found.machine.cards
    if not cards or "device" not in found.lacking:
        return None
    for changes in _smaller(found):
        for count in range(len(cards) + 1, _MOST_CARDS + 1):
            machine = replace(found.machine, cards=(cards[0],) * count)
            if plan(found.config, found.bank, machine, replace(found.serving, **changes)).fits:
                settings = _flags(changes) or "the settings as they are"
                return f"{count} of {cards[0].name} with {settings}"
    return None
