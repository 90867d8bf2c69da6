"""Flags of a command from the fields of a dataclass: name, type, default and help in one place.

A field is a flag where its metadata has a help text; its default is added to that text.

    waiting: int = field(default=128, metadata={"flag": "--queue", "help": "answers that wait"})

metadata: "help"; "flag" (default: the field's name, --in-this-form); "metavar" (default: N for a
number, the flag's name for a text). What a value may be is checked by the dataclass, whose error
names it; argparse checks only that a number is one.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def add_flags(parser: argparse._ActionsContainer, settings: type) -> None:
    """parser: a command's, or a group of it. settings: a dataclass."""
    hints = typing.get_type_hints(settings)
    for field in _flagged(settings):
        kind, name = _kind(hints[field.name]), _flag(field)
        metavar = field.metadata.get("metavar", None if kind is str else "N")
        parser.add_argument(
            name, type=kind, default=field.default, metavar=metavar, help=_help(field)
        )


def from_flags(settings: type[T], options: argparse.Namespace, **others: Any) -> T:
    """The dataclass of the parsed options. others: fields that are no flags, or set otherwise.

    Raises what the dataclass raises, a ConfigError for a value that cannot be.
    """
    given = {
        field.name: getattr(options, _flag(field).lstrip("-").replace("-", "_"))
        for field in _flagged(settings)
    }
    return settings(**{**given, **others})


def _flagged(settings: type) -> Iterator[dataclasses.Field]:
    return (each for each in dataclasses.fields(settings) if "help" in each.metadata)


def _flag(field: dataclasses.Field) -> str:
    return field.metadata.get("flag", "--" + field.name.replace("_", "-"))


def _help(field: dataclasses.Field) -> str:
    text, default = field.metadata["help"], field.default
    if default is None:
        return text
    shown = f"{default:g}" if isinstance(default, float) else default
    return f"{text} (default {shown})"


def _kind(hint: Any) -> type:
    """int, float or str; an optional value's own type, and str for one of several words."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return str
    assert hint in (int, float, str), hint
    return hint
