"""What a server allows: hosts that a request may name, and limits that are possible."""

import pytest

from msa_train.errors import ConfigError
from msa_train.serving.settings import AllowedHosts, ServerLimits, check_host


def test_hosts_that_are_allowed():
    loopback = AllowedHosts.of("127.0.0.1", ("memory.example",))
    assert "memory.example:443" in loopback and "[::1]:80" in loopback and "127.0.0.9" in loopback
    assert not any(host in loopback for host in ("", "10.0.0.1", "example", "memory.example.x"))
    everywhere = AllowedHosts.of("0.0.0.0")
    assert "10.0.0.1:8000" in everywhere and "example" not in everywhere


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 .*--api-keys"):
        check_host("0.0.0.0", has_keys=False)
    check_host("0.0.0.0", has_keys=True)
    check_host("::1", has_keys=False)
    for name in ("body_mb", "batch", "concurrent", "timeout_s"):
        with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} is"):
            ServerLimits(**{name: 0})
