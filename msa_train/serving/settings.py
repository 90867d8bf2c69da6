"""What a server allows: where it listens, who may ask, and how much at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from msa_train.errors import ConfigError
from msa_train.memory.search.settings import flag

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerLimits:
    """How much at once, how large and how long. A request's time counts from its first byte to its
    last. The metadata are the flags of `msa serve`."""

    concurrent: int = flag(32, "answers at once", flag="--max-concurrent")
    context_tokens: int = flag(
        4096, "of a conversation with all that is read for it", flag="--context-tokens"
    )
    waiting: int = flag(128, "answers that wait; more are refused with 429", flag="--queue")
    connections: int = flag(
        1000,
        "at once; an idle one is closed for a new one, and few descriptors (ulimit -n) allow fewer",
        flag="--max-connections",
    )
    body_mb: float = flag(16.0, "of a request", flag="--max-body-mb")
    batch: int = flag(256, "documents in one request", flag="--max-batch")
    timeout_s: float = flag(300.0, "for a request", flag="--timeout-s")
    drain_s: float = flag(
        30.0, "for running requests when the server is told to stop", flag="--drain-s"
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "waiting" else 1e-3
            if not least <= value <= 1e9:
                flag, remedy = each.metadata["flag"], "above 0" if least else "from 0"
                raise ConfigError(f"{flag} is {value}: give a number {remedy} (to 1e9)")

    @property
    def answer_tokens(self) -> int:
        """Of an answer, at most: the rest of the context is for the question and what is read."""
        return self.context_tokens // 4

    @property
    def body_bytes(self) -> int:
        return int(self.body_mb * 1e6)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, has_keys: bool) -> None:
    """Raises ConfigError for a host that other machines reach, where no key is needed."""
    if not is_loopback(host) and not has_keys:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and without keys everybody there "
            "could read and change the memory: give --api-keys FILE, or listen on 127.0.0.1"
        )


@dataclass(frozen=True)
class AllowedHosts:
    """Which `Host` a request may name. A page whose site's name was made to resolve to this machine
    (DNS rebinding) names its own host; an address cannot be rebound."""

    names: frozenset[str]
    addresses: bool

    @classmethod
    def of(cls, host: str, more: tuple[str, ...] = ()) -> AllowedHosts:
        names = {*LOOPBACK_NAMES, host.strip("[]"), *more}
        return cls(frozenset(name.lower() for name in names), not is_loopback(host))

    def __contains__(self, header: str) -> bool:
        name = _without_port(header).lower()
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.addresses or address.is_loopback


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header
