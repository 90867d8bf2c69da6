"""What a server allows: where it listens, who may ask, and how much at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from typing import Any

from msa_train.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def _limit(default: Any, flag: str, help: str) -> Any:
    return field(default=default, metadata={"flag": flag, "help": help})


@dataclass(frozen=True)
class ServerLimits:
    """How much at once, how large and how long. A request's time counts from its first byte to its
    last. The metadata are the flags of `msa serve`."""

    concurrent: int = _limit(32, "--max-concurrent", "answers at once")
    context_tokens: int = _limit(
        4096, "--context-tokens", "of a conversation with all that is read for it"
    )
    waiting: int = _limit(128, "--queue", "answers that wait; more are refused with 429")
    body_mb: float = _limit(16.0, "--max-body-mb", "of a request")
    batch: int = _limit(256, "--max-batch", "documents in one request")
    timeout_s: float = _limit(300.0, "--timeout-s", "for a request")
    drain_s: float = _limit(
        30.0, "--drain-s", "for running requests when the server is told to stop"
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
