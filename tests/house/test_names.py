"""One noun for one thing: no two public classes of one name; tests lie where their subject lies."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.house.sources import ROOT, sources, tree

# Tests of the whole: of several processes, of death at any moment, of a GPU, of one that is only
# pretended, of this house itself.
WHOLE = ("tests/distributed", "tests/faults", "tests/gpu", "tests/house", "tests/pretend")
PAGE = "tests/serving/explorer"  # of the page in msa_train/serving/explorer


def test_a_public_class_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in sources():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def _test_of(path: Path) -> Path:
    """The test of a product file."""
    parts = path.parts
    if parts[0] == "kernels":
        parts = ("kernels", *parts[2:])
    elif parts[0] == "msa_train":
        parts = parts[1:]
    return Path("tests", *parts[:-1], f"test_{parts[-1]}")


def _has_code(path: Path) -> bool:
    """Whether there is a function in it, or a class with one that does something."""
    return path.name != "__init__.py" and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree(path))
    )


def test_every_file_has_its_test():
    missing = [str(path) for path in sources() if _has_code(path) and not _tested(path)]
    assert not missing


def _tested(path: Path) -> bool:
    return (ROOT / _test_of(path)).is_file()


def test_every_test_has_its_file():
    subjects = {_test_of(path) for path in sources()}
    tests = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    alone = [
        str(path)
        for path in tests
        if path not in subjects and not str(path).startswith((*WHOLE, PAGE))
    ]
    assert not alone
