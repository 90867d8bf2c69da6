"""API keys: a file of them, compared in constant time; each may read, or also write."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from msa_train.errors import ConfigError
from msa_train.serving.failures import ApiError

ACCESS = ("read", "write")
_SHORTEST = 16
_FORM = (
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
    """The keys of a server; without any, everybody may do everything."""

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
            raise ConfigError(f"--api-keys {path}: {reason}; {_FORM}") from None
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"--api-keys {path} has no keys; {_FORM}")
        keys = tuple(_key(path, place, entry) for place, entry in enumerate(entries, 1))
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigError(f"--api-keys {path}: a key comes twice")
        return cls(keys)

    def check(self, authorization: str | None, access: str) -> str:
        """The name of who asks. Raises ApiError 401 without a known key, 403 for one that may not.

        Every key is compared, whichever fits: the time says nothing.
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


def _entries(text: str) -> Any:
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return [json.loads(line) for line in lines]
    return yaml.safe_load(text)


def _key(path: Path, place: int, entry: Any) -> ApiKey:
    where = f"--api-keys {path}, entry {place}"
    if not isinstance(entry, dict) or not entry.keys() <= {"key", "sha256", "name", "access"}:
        raise ConfigError(f"{where}: {_FORM}")
    name, access = entry.get("name", f"key {place}"), entry.get("access")
    if access not in ACCESS or not isinstance(name, str):
        raise ConfigError(f"{where}: access is {access!r}: give read or write; {_FORM}")
    return ApiKey(_digest(where, entry), name, access)


def _digest(where: str, entry: dict[str, Any]) -> bytes:
    key, digest = entry.get("key"), entry.get("sha256")
    if (key is None) == (digest is None):
        raise ConfigError(f"{where}: give either key or sha256")
    if digest is not None:
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ConfigError(f"{where}: sha256 is no 64 hexadecimal digits")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or not re.fullmatch(rf"[!-~]{{{_SHORTEST},}}", key):
        raise ConfigError(
            f"{where}: a key has at least {_SHORTEST} characters of ASCII, and no space: a header "
            "carries nothing else"
        )
    return hashlib.sha256(key.encode()).digest()
