"""Start ranks with the deepspeed launcher, as `msa train` does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from data_pipeline.shards.manifest import ShardManifest
from msa_train import checkpoint_folders
from msa_train.config import Config, load_config
from msa_train.errors import ConfigError
from msa_train.parallel.cpu import CPU_ENVIRONMENT, check_gpus, choose_device, means_cpu
from msa_train.parallel.slots import is_here, replicas_of, slots_of
from msa_train.stages import Schedule
from msa_train.training import last_words
from msa_train.training.data import samples_per_group
from msa_train.training.initial_weights import check_start
from msa_train.training.launchers import STARTED_BY
from msa_train.training.restarts import Deaths, End, Restarts
from msa_train.training.saying import say
from msa_train.training.startup import STARTED_AT

MODULE = "msa_train.training.trainer"
_KILLED_S = 30.0  # in which a process ends that was killed


def launch(
    arguments: list[str],
    ranks: int | None,
    resume: bool,
    hostfile: Path | None = None,
    include: str = "",
    max_restarts: int = 0,
) -> int:
    """Train with `ranks` local ranks (default 1), or on the slots that `hostfile` and `include`
    name, one rank each (see slots_of), and wait for them. Returns the first failing rank's exit
    code, 143 or 130 where SIGTERM or Ctrl-C ended the run after its checkpoint.

    arguments: `--config FILE --dotted.key value ...`, checked before anything is started.
    max_restarts: how often in a row the run goes on by itself after a death (see Restarts).
    """
    config = load_config(arguments)
    restarts = Restarts(max_restarts, config.path)
    cpu = means_cpu(config.training.device)
    if cpu and include and hostfile is None and config.training.device == "cpu":
        raise ConfigError(
            f"--include {include} names GPUs, but training.device is cpu: give --ranks"
        )
    slots = _slots(ranks, hostfile, include)
    ranks = sum(map(len, slots.values()))
    where = _Where(hostfile, include, tuple(slots), ranks)
    if hostfile is None and not cpu:
        check_gpus(ranks, "--ranks")
    training = config.training  # refused now, not by ranks that have started
    replicas = replicas_of(ranks, training.tensor_parallel, training.document_parallel)
    samples_per_group(config, replicas, training.document_parallel)
    if training.deepspeed:
        from msa_train.training.engine import check_deepspeed  # seconds, and only for these

        if cpu:
            choose_device("cpu")
        check_deepspeed(training)
    if not resume:
        check_start(config)
    environment = _environment(cpu)
    while True:
        end = _start([*arguments, *["--resume"] * resume], where, environment, config)
        if not restarts.another(end):
            return end.result()
        resume = True


@dataclass(frozen=True)
class _Where:
    """The machines, as DeepSpeed's launcher names them, of so many ranks."""

    hostfile: Path | None
    include: str
    hosts: tuple[str, ...]
    ranks: int

    @property
    def far(self) -> bool:
        """Whether the launcher starts them through ssh."""
        return self.hostfile is not None and not (len(self.hosts) == 1 and is_here(*self.hosts))

    @property
    def words(self) -> list[str]:
        """An empty hostfile is named where none is meant: it would read /job/hostfile by itself."""
        words = ["--hostfile", str(self.hostfile or "")]
        if self.hostfile is None and not self.include:
            return [*words, "--num_gpus", str(self.ranks)]
        words += ["--include", self.include] if self.include else []
        return [*words, "--force_multi"] if self.far else words  # of one machine, it would be this


def _slots(ranks: int | None, hostfile: Path | None, include: str) -> dict[str, list[int]]:
    """The slots of each machine: a rank on each."""
    if hostfile is None and not include:
        ranks = 1 if ranks is None else ranks
        if ranks < 1:
            raise ConfigError(f"--ranks is {ranks}: give 1 or more")
        return {"localhost": list(range(ranks))}
    if ranks is not None:
        raise ConfigError(
            f"--ranks is {ranks}, but --hostfile and --include say how many there are: leave it out"
        )
    return slots_of(hostfile, include)


def _start(arguments: list[str], where: _Where, environment: dict[str, str], config: Config) -> End:
    """Start the ranks once, and wait for their end."""
    # At level critical it says nothing about ranks that ended: they have said why themselves.
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", *where.words,
        "--master_port", str(free_port()), "--log_level", "critical", "--module", MODULE,
        *arguments,
    ]  # fmt: skip
    folder = config.path / "checkpoints"
    before = list(checkpoint_folders.newest_first(folder))
    deaths = Deaths(config.path, where.ranks)
    environment = environment | {STARTED_AT: str(time.time())}

    def ask(session: int) -> None:
        """Ranks of other machines are no processes of this one. A signal to their launcher would
        leave them 30 s, and end all that this user's DeepSpeed has there."""
        try:
            if deaths.records():
                return last_words.ask_to_stop(config.path)
        except OSError as error:  # of the output: better they have 30 s than are not told
            say(f"the ranks cannot be asked to save: {error}")
        _stop(session)

    ends = (ask, _stop) if where.far else (_stop, _kill)
    code, stopped = _run(command, environment, config.training.timeout_s, deaths.look, *ends)
    end = End(code, stopped, deaths.records(), deaths.first)
    if stopped:
        if list(checkpoint_folders.newest_first(folder)) == before:  # or its rank has said so
            say("training stopped: no step was saved since it was started")
    elif code <= 0:  # the launcher says 0 even when one of its own processes was killed
        built = [stage.samples for stage in ShardManifest.load(config.manifest_folder).stages]
        end.steps = Schedule.of(config.stages, built, config.training.batch_samples).total
        end.reached = checkpoint_folders.last_step(folder)
    return end


def _members(session: int) -> list[psutil.Process]:
    """Living processes of a session, whoever their parents are now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _stop(session: int) -> None:
    """Ask the ranks to save and end; where there are none yet, end all that would start them."""
    members = _members(session)
    ranks = [each for each in members if _is_rank(each)]
    for process in ranks or members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


def _kill(session: int) -> None:
    for process in _members(session):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _run(
    command: list[str],
    environment: dict[str, str],
    patience_s: float,
    look: Callable[[], None] = lambda: None,
    stop: Callable[[int], None] = _stop,
    hurry: Callable[[int], None] = _kill,
) -> tuple[int, int]:
    """Exit code of a launcher, after which none of its processes here lives, and the signal that
    ended it early (0: none). look: called every second until then. stop, hurry: what becomes of its
    session at a signal, and at a second Ctrl-C.

    It has a session of its own, so that Ctrl-C reaches this process alone: a signal makes the ranks
    save and end, a second Ctrl-C does not wait for that. DeepSpeed's launcher would die at once.
    """
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    stopped: list[int] = []

    def on_signal(number: int, _: object) -> None:
        impatient = number == signal.SIGINT and number in stopped
        (hurry if impatient else stop)(launcher.pid)
        stopped.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        code = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = launcher.wait(1.0)
            look()
        _wait_for_end(launcher.pid, patience_s)  # of ranks whose launcher was killed
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    return code, stopped[0] if stopped else 0


def _wait_for_end(session: int, patience_s: float) -> None:
    """Kills what is late. What does not die of that (it waits for a device or for storage) is named
    and left."""
    deadline = time.monotonic() + patience_s
    while members := _members(session):
        late = time.monotonic() - deadline
        if late > 0:
            _kill(session)
        if late > _KILLED_S:
            numbers = ", ".join(str(each.pid) for each in members)
            say(f"processes that cannot be killed are left behind: {numbers}")
            return
        time.sleep(0.1)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("--local_rank") for word in process.cmdline())
    except psutil.Error:
        return False


def _environment(cpu: bool) -> dict[str, str]:
    """The launcher's: this interpreter's scripts on PATH. Ranks of other machines do not see it."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    env = {**os.environ, "PATH": path, STARTED_BY: str(os.getpid())}
    if cpu:
        env |= CPU_ENVIRONMENT
        # Megatron decorates fusions that no CPU run uses; loading their compiler takes seconds.
        env["TORCHDYNAMO_DISABLE"] = "1"
    return env


def free_port() -> int:
    """Of this machine, a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
