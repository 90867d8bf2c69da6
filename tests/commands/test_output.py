"""JSON alone on standard output; settings that override those of a file."""

import argparse
import json

from msa_train.commands.output import add_config, add_json, config_arguments, print_json


def test_json_is_printed_as_it_is_spelled(capsys):
    print_json({"name": "東京", "rows": [1]})
    shown = capsys.readouterr().out
    assert "東京" in shown and json.loads(shown) == {"name": "東京", "rows": [1]}


def test_a_config_takes_overrides():
    parser = argparse.ArgumentParser()
    add_config(parser)
    add_json(parser)
    options, options_overrides = parser.parse_known_args(
        ["--config", "a.yaml", "--json", "--training.lr", "1"]
    )
    options.overrides = options_overrides
    assert options.takes_overrides and options.json
    assert config_arguments(options) == ["--config", "a.yaml", "--training.lr", "1"]
