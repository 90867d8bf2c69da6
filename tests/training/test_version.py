"""Which code made a run: told where the package is a checkout, and never an error."""

import subprocess

from msa_train import __version__
from msa_train.training.tracking.version import code_version, git_root


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def package(folder):
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    return folder


def test_a_checkout_has_a_commit_and_may_be_dirty(tmp_path):
    ours = package(tmp_path / "ours")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = code_version(ours)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    assert clean["package"] == __version__
    (ours / "__init__.py").write_text("changed = 1\n")
    assert code_version(ours) == clean | {"dirty": True}
    assert git_root(ours) == str(tmp_path)


def test_an_installed_package_has_none(tmp_path, monkeypatch):
    nothing = {"package": __version__, "commit": None, "dirty": None}
    assert code_version(package(tmp_path / "plain")) == nothing
    git(tmp_path, "init")  # a repository around an environment with the package is another's
    assert code_version(tmp_path / "plain") == nothing
    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path / "plain") == nothing
