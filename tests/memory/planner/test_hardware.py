"""Cards and sizes as a person types them, and this machine."""

import pytest

from msa_train.errors import ConfigError
from msa_train.memory.planner.hardware import (
    CARDS,
    available_memory,
    named_as,
    parse_bytes,
    parse_cards,
    parse_count,
    this_machine,
)


def test_cards_and_sizes_are_read_as_typed():
    assert [card.name for card in parse_cards("2xA800-80GB")] == ["A800-80GB"] * 2
    assert parse_cards("h100-80gb") == (CARDS["h100-80gb"],)
    [own] = parse_cards("48GB@864GB/s@362TFLOPS")
    assert (own.bytes, own.bandwidth, own.flops) == (48 * 10**9, 864e9, 362e12)
    assert parse_bytes("512GiB", "x") == 512 << 30 and parse_bytes("1.5 TB", "x") == 1.5e12
    assert parse_count("1.5M", "x") == 1_500_000 and parse_count("17", "x") == 17
    assert all(card.source and card.bandwidth and card.flops for card in CARDS.values())
    for text in ("2xV100", "0xA800-80GB", "80GB", "80GB@fast", "80GB@1TB/s@many", ""):
        with pytest.raises(ConfigError, match="gpus"):
            parse_cards(text)
    for text in ("512", "GiB", "-1GB", "0GB"):
        with pytest.raises(ConfigError, match="host-ram is"):
            parse_bytes(text, "host-ram")
    for text in ("100MB", "-3", "many", "0"):
        with pytest.raises(ConfigError, match="tokens is"):
            parse_count(text, "tokens")


@pytest.mark.parametrize(
    "device, name",
    [
        ("NVIDIA A800-SXM4-80GB", "A800-80GB"),
        ("NVIDIA A800 80GB PCIe", "A800-PCIe-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA L4", "L4-24GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090-24GB"),
        ("NVIDIA GeForce RTX 2080", None),
    ],
)
def test_a_drivers_name_is_found_in_the_table(device, name):
    found = named_as(device)
    assert (found and found.name) == name


def test_this_machine_is_within_its_limits(tmp_path):
    assert this_machine(["cpu"]).cards == ()
    assert this_machine().host > 0
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("25000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 2000\nactive_file 1000\nanon 5\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 8000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024
    with pytest.raises(ConfigError, match="cuda:77"):
        this_machine(["cuda:77"])
