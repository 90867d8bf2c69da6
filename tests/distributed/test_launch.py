"""`msa train` as a scheduler sees it: what it starts, ends with it."""

import os
import signal
import subprocess
import sys
import time

import psutil

from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.config import load_config
from tests.distributed.runs import logged, settings

STAGES = "[{name: main, steps: 5000, epochs: 2500, lr: 1e-3}]"


def test_sigterm_reaches_the_ranks_and_they_save(tmp_path):
    arguments = settings(tmp_path / "run", stages=STAGES)
    config = load_config(arguments)
    build_shards(config.corpus, tmp_path / "run" / "shards", 1)
    config.save(tmp_path / "run.yaml")
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "msa_train.cli", "train", "--ranks", "2"]
    process = subprocess.Popen(
        [*command, "--config", str(tmp_path / "run.yaml")],
        stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        _wait(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and logged(config.path), 120)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, (tmp_path / "log").read_text()[-2000:]
    finally:
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=40)
    assert not alive, "nothing is left behind"
    step = checkpoint_folders.last_step(config.path / "checkpoints")
    assert 0 < step < 5000 and logged(config.path)[-1]["step"] == step


def _wait(found, seconds):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.5)
