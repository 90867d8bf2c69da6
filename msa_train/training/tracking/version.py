"""Which code a run is made of: the package's version, and its commit where it is a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from msa_train import __version__

PACKAGE = Path(__file__).resolve().parents[2]


def code_version(package: Path = PACKAGE) -> dict[str, str | bool | None]:
    """package: its version; commit and dirty: None where the package is not a git checkout."""
    checkout = git_root(package) is not None
    status = _git(package, "status", "--porcelain", "--untracked-files=no") if checkout else None
    return {
        "package": __version__,
        "commit": _git(package, "rev-parse", "HEAD") if checkout else None,
        "dirty": None if status is None else bool(status),
    }


def git_root(package: Path = PACKAGE) -> str | None:
    """The checkout that holds the package's files; a repository merely around it does not count."""
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    return None if tracked is None else _git(package, "rev-parse", "--show-toplevel")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None: no git, no repository, too slow."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
