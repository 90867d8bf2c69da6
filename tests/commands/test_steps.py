"""Commands of commands: what is shown, what a failure stops, what is held."""

import json
import time

import pytest

from msa_train.commands.steps import MemoryWatch, begin_step, msa_json, run_msa


def test_a_command_is_shown_as_typed_and_its_failure_ends_the_run(capsys):
    given = []
    begin_step("1/2", "data")
    run_msa(lambda arguments: given.append(arguments), ("data", "build"))
    assert given == [["data", "build"]]
    assert capsys.readouterr().out == "\n== 1/2  data\n$ msa data build\n"
    for run in (run_msa, msa_json):
        with pytest.raises(SystemExit) as ended:
            run(lambda arguments: 3, ["data"])
        assert ended.value.code == 3


def test_what_a_command_reports_is_taken_from_its_json(capsys):
    def main(arguments):
        print(json.dumps({"given": arguments}))

    assert msa_json(main, ["ask", "x y?"]) == {"given": ["ask", "x y?", "--json"]}
    assert capsys.readouterr().out == "$ msa ask 'x y?'\n"


def test_the_watch_sees_what_is_held():
    watch = MemoryWatch(every_s=0.01)
    held = bytearray(200 << 20)
    time.sleep(0.1)
    assert watch.stop() > 0.2 and len(held)
