"""Flags made from a dataclass: their names, types and defaults, and the dataclass made of them."""

import argparse
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from msa_train.commands.flags import add_flags, from_flags
from msa_train.errors import ConfigError
from msa_train.memory.search.settings import TierSettings
from msa_train.serving.settings import ServerLimits


@dataclass(frozen=True)
class Oven:
    degrees_c: float = field(default=180.0, metadata={"help": "of the air", "metavar": "C"})
    trays: int = field(default=2, metadata={"flag": "--shelves", "help": "in use"})
    mode: Literal["fan", "grill"] = field(default="fan", metadata={"help": "fan, grill"})
    timer_s: float | None = field(default=None, metadata={"help": "until it rings"})
    door_open: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("fan", "grill"):
            raise ConfigError(f"mode is {self.mode!r}")


def parser_of(settings):
    parser = argparse.ArgumentParser()
    add_flags(parser, settings)
    return parser


def test_flags_have_the_fields_types_and_defaults():
    parser = parser_of(Oven)
    assert from_flags(Oven, parser.parse_args([])) == Oven()
    given = ["--degrees-c", "200", "--shelves", "3", "--mode", "grill", "--timer-s", "9"]
    assert from_flags(Oven, parser.parse_args(given)) == Oven(200.0, 3, "grill", 9.0)
    assert from_flags(Oven, parser.parse_args([]), door_open=True).door_open


def test_help_says_the_default():
    shown = " ".join(parser_of(Oven).format_help().split())
    assert "--degrees-c C of the air (default 180)" in shown
    assert "--shelves N in use (default 2)" in shown
    assert "--mode MODE fan, grill (default fan)" in shown
    assert "until it rings (default" not in shown
    assert "door" not in shown


def test_what_cannot_be_is_refused_by_argparse_or_by_the_dataclass(capsys):
    with pytest.raises(SystemExit):
        parser_of(Oven).parse_args(["--shelves", "many"])
    assert "--shelves" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="mode is 'steam'"):
        from_flags(Oven, parser_of(Oven).parse_args(["--mode", "steam"]))


@pytest.mark.parametrize("settings", [ServerLimits, TierSettings])
def test_settings_of_the_server_are_what_its_flags_say(settings):
    assert from_flags(settings, parser_of(settings).parse_args([])) == settings()
    flagged = {each.name for each in fields(settings) if "help" in each.metadata}
    assert flagged == {each.name for each in fields(settings)} - {"prefetch"}
