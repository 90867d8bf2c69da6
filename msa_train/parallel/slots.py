"""Which ranks a launch has, where a hostfile or --include names them as DeepSpeed reads both, and
how they are divided."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import psutil

from msa_train.errors import ConfigError
from msa_train.parallel.cpu import gpus


def slots_of(hostfile: Path | None, include: str) -> dict[str, list[int]]:
    """Host -> its slots (GPUs), one rank each. Without a hostfile: of this machine alone.

    include: HOST[:SLOT,SLOT...][@HOST...] (empty: all). Raises ConfigError for what names no slot.
    """
    if hostfile is None and not gpus():
        raise ConfigError(f"--include {include}: this machine has no GPU; give --ranks instead")
    if hostfile is not None and not hostfile.is_file():
        raise ConfigError(f"--hostfile {hostfile}: there is no such file")
    # It takes seconds to load, and most launches need no more than a number of ranks.
    from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

    try:
        given = fetch_hostfile(hostfile) if hostfile else {"localhost": gpus()}
    except (ValueError, OSError) as error:
        raise ConfigError(f"--hostfile {hostfile}: {error}") from error
    try:
        return parse_inclusion_exclusion(given, include, "")
    except ValueError as error:
        raise ConfigError(f"--include {include}: {error}; there are {_shown(given)}") from error


def is_here(host: str) -> bool:
    """Whether a name is one of this machine's."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    return any(each in own or ipaddress.ip_address(each).is_loopback for each in found)


def ranks_here(most: int) -> int:
    """How many ranks a run of one machine gets: `most`, or one on each GPU where there are less."""
    return min(most, gpus() or most)


def replicas_of(ranks: int, tensor: int, documents: int) -> int:
    """How many groups of `ranks` ranks read different samples, at so many tensor-parallel ranks a
    model and document-parallel ranks a sample. Raises ConfigError where they cannot be divided."""
    size = tensor * documents
    if ranks % size:
        sizes = " times ".join(
            f"training.{kind}_parallel ({count})"
            for kind, count in (("tensor", tensor), ("document", documents))
            if count > 1
        )
        raise ConfigError(
            f"{ranks} rank{'s' * (ranks > 1)}, which {sizes} does not divide: start a multiple of "
            f"{size}"
        )
    return ranks // size


def _shown(given: dict[str, int]) -> str:
    return ", ".join(f"{host} slots={slots}" for host, slots in given.items())
