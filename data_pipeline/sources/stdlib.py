"""Docstrings of the Python standard library of the running interpreter: text every machine has.

The source files are parsed, never imported: nothing runs, and the result depends on the installed
files alone.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Tests, demos, bundled tools, character tables: no documentation for a user.
SKIPPED = {
    "test", "tests", "idlelib", "turtledemo", "lib2to3", "ensurepip", "site-packages",
    "dist-packages", "__pycache__", "__phello__", "pydoc_data", "encodings",
}  # fmt: skip
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Docstring:
    """One documented object. name: qualified, `json.JSONDecoder.decode`; module: `json`."""

    name: str
    module: str
    kind: str  # module, class, function or method
    signature: str  # "(obj, *, indent=None)", empty for a module
    parameters: tuple[str, ...]
    text: str

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]


@cache
def docstrings() -> tuple[Docstring, ...]:
    """All public docstrings in a fixed order; of several equal texts the shortest name keeps it.

    Inherited documentation is not in the source, and what was copied by hand is equal text: each
    text stands once. A module `_pyX` is the Python form of `X` and documents it.
    """
    found = sorted(
        (item for module, path in _files() for item in _module_docstrings(module, path)),
        key=lambda item: (item.name.count("."), len(item.name), item.name),
    )
    by_text: dict[str, Docstring] = {}
    by_name: dict[str, Docstring] = {}
    for item in found:
        if item.name not in by_name and " ".join(item.text.split()) not in by_text:
            by_name[item.name] = by_text[" ".join(item.text.split())] = item
    return tuple(sorted(by_name.values(), key=lambda item: item.name))


def _files() -> Iterator[tuple[str, Path]]:
    """(module name, path) of the public modules, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix == ".py" and (module := _module_name(path.relative_to(root))):
                yield module, path


def _module_name(path: Path) -> str:
    """`json.decoder`; empty for a private module."""
    parts = [part.removeprefix("_py") for part in path.with_suffix("").parts]
    if parts[-1] == "__init__":
        parts.pop()
    private = any(part.startswith("_") for part in parts)
    return "" if private else ".".join(parts)


def _module_docstrings(module: str, path: Path) -> Iterator[Docstring]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a file for another version
        return
    if text := _docstring(tree):
        yield Docstring(module, module, "module", "", (), text)
    yield from _definitions(tree, module, module, "function")


def _definitions(
    node: ast.Module | ast.ClassDef, prefix: str, module: str, kind: str
) -> Iterator[Docstring]:
    for item in _public(node):
        name = f"{prefix}.{item.name}"
        function = _initialiser(item) if isinstance(item, ast.ClassDef) else item
        signature, parameters = _signature(function, method=kind == "method" or item != function)
        if text := _docstring(item):
            what = "class" if isinstance(item, ast.ClassDef) else kind
            yield Docstring(name, module, what, signature, parameters, text)
        if isinstance(item, ast.ClassDef):
            yield from _definitions(item, name, module, "method")


def _public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Definitions in the body, also those under if and try (platform variants)."""
    pending: list[ast.AST] = list(node.body)
    while pending:
        item = pending.pop(0)
        if isinstance(item, Definition):
            if not item.name.startswith("_"):
                yield item
        elif isinstance(item, ast.If | ast.Try | ast.ExceptHandler):
            inside = ast.iter_child_nodes(item)
            pending[:0] = [x for x in inside if isinstance(x, ast.stmt | ast.ExceptHandler)]


def _initialiser(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )


def _signature(
    function: ast.FunctionDef | ast.AsyncFunctionDef | None, method: bool
) -> tuple[str, tuple[str, ...]]:
    if function is None:
        return "", ()
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    text = ast.unparse(arguments)
    if method and names and names[0] in ("self", "cls"):
        text = text.removeprefix(names[0]).removeprefix(", ")
        names = names[1:]
    return f"({text})", tuple(name for name in names if not name.startswith("_"))


def _docstring(node: ast.Module | Definition) -> str:
    text = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(text).strip() if text else ""
