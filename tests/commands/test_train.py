"""`msa train` starts the launcher; a W&B sweep starts it with settings that exist."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from msa_train.cli import build_parser, main
from msa_train.config import load_config, to_plain

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def of(path):
    return yaml.safe_load(path.read_text())


def choices(parameter):
    """Values that a sweep may give it."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def agent_command(sweep, chosen):
    """What an agent of W&B would run."""
    arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
    command = create_sweep_command(sweep["command"])
    return [part for c in command for part in (arguments["args"] if c == "${args}" else [c])]


def setting(config, name):
    value = to_plain(config)
    for part in name.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_value_of_a_sweep_is_a_setting(path):
    sweep = of(path)
    assert sweep["metric"]["name"] == "router/recall@1"
    for name, parameter in sweep["parameters"].items():
        for value in choices(parameter):
            *_, argument = agent_command(of(path), {name: value})
            assert argument.startswith(f"--{name}=")
            config = load_config(["--config", str(ROOT / "configs/quickstart.yaml"), argument])
            assert setting(config, name) == value


def test_the_command_of_a_sweep_starts_a_run_of_its_own(tmp_path):
    """launch/sweep.sh with a stand-in for `msa` that says how it was called."""
    (tmp_path / "msa").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "msa").chmod(0o755)
    base = tmp_path / "a run"
    (base / "shards").mkdir(parents=True)
    sweep = of(FILES[0])
    command = agent_command(sweep, {"model.router.top_k": 8, "training.betas": [0.9, 0.95]})
    assert command[3] == "runs/quickstart"
    done = subprocess.run(
        [*command[:3], str(base), *command[4:]],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "WANDB_RUN_ID": "ab12"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    options, overrides = build_parser().parse_known_args(done.stdout.splitlines())
    assert options.resume and options.ranks == 1
    config = load_config(["--config", str(ROOT / options.config[0]), *overrides])
    assert config.path == base / "sweeps" / "ab12"
    assert config.model.router.top_k == 8 and config.training.betas == (0.9, 0.95)
    assert Path(config.shards) == (base / "shards").resolve()


def test_settings_reach_the_launcher(monkeypatch):
    given = []
    monkeypatch.setattr(
        "msa_train.training.launch.launch", lambda *options: given.append(options) or 3
    )
    run = ["train", "--config", "a.yaml", "--training.steps", "2", "--ranks", "2", "--resume"]
    run += ["--max-restarts", "3"]
    assert main(run) == 3
    assert main(["train", "--config", "a.yaml"]) == 3
    hosts = ["--include", "a:0@b:1,2", "--hostfile", "hosts"]
    assert main(["train", "--config", "a.yaml", *hosts]) == 3
    assert given == [
        (["--config", "a.yaml", "--training.steps", "2"], 2, True, None, "", 3),
        (["--config", "a.yaml"], None, False, None, "", 0),
        (["--config", "a.yaml"], None, False, Path("hosts"), "a:0@b:1,2", 0),
    ]


def test_launch_files_are_read_by_a_shell_and_as_yaml():
    launch = ROOT / "launch"
    scripts = [*launch.glob("*.sh"), launch / "slurm.sbatch"]
    assert len(scripts) > 4
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True, timeout=30)
    service, job = yaml.safe_load_all((launch / "kubernetes.yaml").read_text())
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
