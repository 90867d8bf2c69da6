"""Nobody waits for another process for longer than a setting says."""

import ast

import pytest

from tests.house.sources import sources, tree

# Calls that give a process group its patience: torch's own is half an hour, over NCCL ten minutes.
GROUPS = ("init_process_group", "new_group")


def _group_calls(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in GROUPS:
            yield node


def test_there_are_process_groups():
    assert sum(len([*_group_calls(path)]) for path in sources()) >= 3


@pytest.mark.parametrize("path", [p for p in sources() if any(_group_calls(p))], ids=str)
def test_a_process_group_has_a_timeout(path):
    for call in _group_calls(path):
        assert "timeout" in {each.arg for each in call.keywords}, f"{path}:{call.lineno}"
