"""The project's own files, modules and imports, as the tests of the house see them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("msa_train", "kernels/msa_kernels", "data_pipeline")
OURS = ("msa_train", "msa_kernels", "data_pipeline")


@cache
def sources() -> tuple[Path, ...]:
    """Product files, relative to the root."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path.relative_to(ROOT) for path in found))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def module_of(path: Path) -> str:
    parts = path.parts[1:] if path.parts[0] == "kernels" else path.parts
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sources()}


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules that a file imports anywhere in it: at its top, in a function, for types alone.

    `from package import name` is the module package.name where there is one, else package.
    """
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else node.module)
    return frozenset(found)
