"""Who may ask, and in which form: API keys that may read or also write, bodies of JSON, clients
that are still there."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from msa_train.errors import ConfigError
from msa_train.serving.errors import ApiError, ClientGone

T = TypeVar("T")
_ACCESS = ("read", "write")
_SHORTEST_KEY = 16
_BODY_S = 60.0  # within which a body must arrive
_ENTRY = (
    'each key is {"key": TEXT or "sha256": HEX, "name": TEXT, "access": read or write}, in a YAML '
    "list or as JSON lines"
)


@dataclass(frozen=True)
class ApiKey:
    """digest: sha256 of the key. access: write also reads."""

    digest: bytes
    name: str
    access: str


class ApiKeys:
    """The keys of a server; without any, everybody may do everything.

    Keys are kept as digests and compared in constant time.
    """

    def __init__(self, keys: tuple[ApiKey, ...] = ()):
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def load(cls, path: Path) -> ApiKeys:
        """Raises ConfigError, naming the file and the entry, never a key."""
        try:
            entries = _entries(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or "it is neither YAML nor JSON lines"
            raise ConfigError(f"--api-keys {path}: {reason}; {_ENTRY}") from None
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"--api-keys {path} has no keys; {_ENTRY}")
        keys = tuple(_key(path, place, entry) for place, entry in enumerate(entries, 1))
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigError(f"--api-keys {path}: a key comes twice")
        return cls(keys)

    def check(self, authorization: str | None, access: str) -> str:
        """The name of the key. Raises ApiError 401 for no key or an unknown one, 403 for one that
        may not.

        Every key is compared, even after one fits: the time it takes tells nothing.
        """
        if not self._keys:
            return ""
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        known = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                known = key
        if known is None or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "invalid_api_key",
                "this server needs a key that it knows: Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        if access == "write" and known.access != "write":
            raise ApiError(403, "read_only_key", f"the key {known.name!r} may only read")
        return known.name


def requires(keys: ApiKeys, access: str) -> Dependency:
    """Refuses requests whose key may not `access` (read or write), before their body is read."""

    async def check(request: Request) -> None:
        keys.check(request.headers.get("authorization"), access)

    return Depends(check)


async def json_body(request: Request) -> bytes:
    """Raises ApiError 415 for a body not declared as JSON, 408 for one that does not arrive,
    ClientGone where the client leaves before its end.

    The declaration matters: a form on another site's page can send any other type without asking
    the server first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "not_json", f"Content-Type is {kind[:80]!r}: send application/json")
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, "slow_body", f"the body did not come in {_BODY_S:.0f} s") from None
    except ClientDisconnect:
        raise ClientGone from None


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """`work`, cancelled when the client goes away. Raises ClientGone then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _entries(text: str) -> Any:
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return [json.loads(line) for line in lines]
    return yaml.safe_load(text)


def _key(path: Path, place: int, entry: Any) -> ApiKey:
    where = f"--api-keys {path}, entry {place}"
    if not isinstance(entry, dict) or not entry.keys() <= {"key", "sha256", "name", "access"}:
        raise ConfigError(f"{where}: {_ENTRY}")
    name, access = entry.get("name", f"key {place}"), entry.get("access")
    if access not in _ACCESS or not isinstance(name, str):
        raise ConfigError(f"{where}: access is {access!r}: give read or write; {_ENTRY}")
    return ApiKey(_digest(where, entry), name, access)


def _digest(where: str, entry: dict[str, Any]) -> bytes:
    key, digest = entry.get("key"), entry.get("sha256")
    if (key is None) == (digest is None):
        raise ConfigError(f"{where}: give either key or sha256")
    if digest is not None:
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ConfigError(f"{where}: sha256 is no 64 hexadecimal digits")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or not re.fullmatch(rf"[!-~]{{{_SHORTEST_KEY},}}", key):
        raise ConfigError(
            f"{where}: a key has at least {_SHORTEST_KEY} characters of ASCII, and no space: a "
            "header carries nothing else"
        )
    return hashlib.sha256(key.encode()).digest()
