"""What a server allows: where it listens, who may ask, and how much at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from msa_train.errors import ConfigError

_FLAGS = {  # of `msa serve`
    "body_mb": "--max-body-mb",
    "batch": "--max-batch",
    "concurrent": "--max-concurrent",
    "waiting": "--queue",
    "context_tokens": "--context-tokens",
    "timeout_s": "--timeout-s",
    "drain_s": "--drain-s",
}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerLimits:
    """body_mb: of a request. batch: documents in one request. concurrent: answers at once; waiting:
    those that wait for one of them to end. context_tokens: of a conversation with all that is read
    for it. timeout_s: for a request from its first byte to its last. drain_s: how long running
    requests may take after a signal to stop."""

    body_mb: float = 16.0
    batch: int = 256
    concurrent: int = 32
    waiting: int = 128
    context_tokens: int = 4096
    timeout_s: float = 300.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "waiting" else 1e-3
            if not least <= value <= 1e9:
                flag, remedy = _FLAGS[field.name], "above 0" if least else "from 0"
                raise ConfigError(f"{flag} is {value}: give a number {remedy} (to 1e9)")

    @property
    def answer_tokens(self) -> int:
        """Of an answer, at most: the rest of the context is for what it is made from."""
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
    """Raises ConfigError for a host that others reach while nobody needs a key."""
    if not is_loopback(host) and not has_keys:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and without keys everybody there "
            "could read and change the memory: give --api-keys FILE, or listen on 127.0.0.1"
        )


@dataclass(frozen=True)
class AllowedHosts:
    """Which `Host` a request may name: a page of another site that had its name resolve to this
    machine (DNS rebinding) names its own. Addresses cannot be rebound."""

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
