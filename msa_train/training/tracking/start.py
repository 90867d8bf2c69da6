"""Start a W&B run, with the settings and the version of the code; or do without: switched off, not
installed, or not even startable offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from msa_train import __version__
from msa_train.config import HELD_OUT_NUMBERS, Config, WandbConfig, load_config_file, to_plain
from msa_train.training.tracking.tracker import Tracker
from msa_train.training.tracking.written import last_step

PACKAGE = Path(__file__).resolve().parents[2]


def start(config: Config, run_id: str | None) -> Tracker:
    """The tracker of a training run. run_id: of the run to continue."""
    run = _start(config, run_id, "train", config.path)
    if run is not None:
        for name, best in _summaries(config):
            run.define_metric(name, summary=f"{best},last")
    return Tracker(run, config.training.wandb, _known_step(run, config.path, run_id))


def _known_step(run: Any, folder: Path, run_id: str | None) -> int | None:
    """The last step of an earlier part that W&B has, or will have by `wandb sync`; None: no such
    part. Offline that is what lies on disk; online the server knows its own."""
    if run is None or run_id is None:
        return None
    if run.offline:
        return last_step(folder, run_id)
    return max(run.starting_step - 1, last_step(folder, run_id, offline_only=True))


def log_export(checkpoint: Path, export: Path) -> None:
    """Record an export and the checkpoint it was made from, as a run of its own in the same group.

    Does nothing where training was not tracked; never raises.
    """
    try:
        config = load_config_file(checkpoint / "config.yaml")
        state = json.loads((checkpoint / "state.json").read_text())
        trained, step = state["wandb_id"], state["step"]
        if trained is None or config.training.wandb.artifacts == "none":
            return
        folder = checkpoint.resolve().parent.parent
        tracker = Tracker(_start(config, None, "export", folder), config.training.wandb)
        tracker.use_checkpoint(checkpoint, step, trained)
        tracker.log_export(export, step, trained)
        tracker.finish()
    except Exception as error:  # the export is made and whole, whatever becomes of its record
        print(f"W&B: the export is not recorded: {error}", file=sys.stderr)


def _start(config: Config, run_id: str | None, job: str, folder: Path) -> Any:
    settings = config.training.wandb
    wanted = _mode(settings)
    if wanted == "off":
        return None
    try:
        import wandb
    except ImportError:
        print("W&B is not installed: metrics go to metrics.jsonl alone", file=sys.stderr)
        return None
    for mode in dict.fromkeys((wanted, "offline")):
        try:
            return wandb.init(
                project=settings.project,
                notes=settings.notes,
                tags=list(settings.tags),
                job_type=job,
                dir=str(folder),
                id=run_id,
                resume="allow" if run_id and mode == "online" else None,
                mode=mode,
                config=to_plain(config) | {"code": code_version()},
                allow_val_change=True,  # a resumed run may train on with other settings
                settings=wandb.Settings(
                    init_timeout=settings.init_timeout_s,
                    finish_timeout=settings.finish_timeout_s,
                    git_root=git_root(),
                    silent=True,
                    console="off",
                ),
                **_names(config, job),
            )
        except Exception as error:  # unreachable, not logged in, broken: never a reason to stop
            print(f"W&B ({mode}): {error}", file=sys.stderr)
    return None


def _names(config: Config, job: str) -> dict[str, str | None]:
    """Name and group. A run, its export and its resumed parts are one group."""
    settings = config.training.wandb
    in_sweep = "WANDB_SWEEP_ID" in os.environ  # W&B names and groups those itself
    name = settings.name or (None if in_sweep else config.path.name)
    group = settings.group or name
    return {"name": name if job == "train" or name is None else f"{name}-{job}", "group": group}


def _summaries(config: Config) -> list[tuple[str, str]]:
    """Numbers whose best value is shown in the summary, beside the last."""
    shown = [(f"loss/{name}", "min") for name in ("lm", "router")]
    if (best := config.training.best) is not None:
        shown.append((best, "max" if HELD_OUT_NUMBERS[best.rpartition("/")[2]] else "min"))
    return shown + [
        (f"router/layer_{layer}_recall@{k}", "max")
        for layer in config.model.router_layers
        for k in ("1", "k")
    ]


def _mode(settings: WandbConfig) -> str:
    """auto is what WANDB_MODE says, else online where there is a key."""
    if settings.mode != "auto":
        return settings.mode
    asked = os.environ.get("WANDB_MODE")
    if asked in ("online", "offline", "disabled"):
        return "off" if asked == "disabled" else asked
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    return "online" if "WANDB_API_KEY" in os.environ or host in _netrc() else "offline"


def _netrc() -> str:
    path = Path.home() / ".netrc"
    try:
        return path.read_text(errors="ignore")
    except OSError:  # not there, or not ours to read
        return ""


def code_version(package: Path = PACKAGE) -> dict[str, str | bool | None]:
    """Which code a run is made by. commit, dirty: None where the package is no git checkout."""
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
    """Output of a git command; None without git or a repository, or when it takes too long."""
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
