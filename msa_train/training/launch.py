"""Start ranks with the deepspeed launcher, as `msa train` does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import torch

from data_pipeline.shards.manifest import ShardManifest
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.errors import ConfigError, RankError
from msa_train.training.data import samples_per_rank

MODULE = "msa_train.training.trainer"


def launch(arguments: list[str], ranks: int, resume: bool) -> int:
    """Train with `ranks` local ranks and wait for them. Returns the first failing rank's exit code.

    arguments: `--config FILE --dotted.key value ...`, checked before anything is started.
    """
    config = load_config(arguments)
    if ranks < 1:
        raise ConfigError(f"--ranks is {ranks}: give 1 or more")
    parallel = config.training.tensor_parallel
    if ranks % parallel:
        raise ConfigError(
            f"--ranks is {ranks}, which training.tensor_parallel ({parallel}) does not divide: "
            "give a multiple"
        )
    samples_per_rank(config, ranks // parallel)  # refused now, not by ranks that have started
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks),
        "--master_port", str(_free_port()), "--module", MODULE, *arguments,
    ]  # fmt: skip
    if resume:
        command.append("--resume")
    launcher = subprocess.Popen(command, env=_environment(ranks))
    # A scheduler's SIGTERM is for the ranks: they save, and end with it. DeepSpeed's launcher would
    # die of it at once, and leave them behind.
    signal.signal(signal.SIGTERM, lambda *_: _stop_ranks(launcher.pid))
    if code := launcher.wait():
        return code
    # The launcher says 0 even when one of its own processes was killed.
    reached = checkpoint_folders.last_step(config.path / "checkpoints")
    steps = sum(ShardManifest.load(config.manifest_folder).steps)
    if reached < steps:
        raise RankError(
            f"the launcher ended at step {reached} of {steps} without an error: a rank was killed "
            "from outside; continue with --resume"
        )
    return 0


def _stop_ranks(launcher: int) -> None:
    import psutil

    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.startswith("--local_rank") for word in process.cmdline()):
                process.terminate()


def _environment(ranks: int) -> dict[str, str]:
    """The launcher's environment: this interpreter's scripts on PATH, cores shared by ranks."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    env = {**os.environ, "PATH": path}
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, cores // ranks))}
        # Megatron decorates fusions that no CPU run uses; loading their compiler takes seconds.
        env["TORCHDYNAMO_DISABLE"] = "1"
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
