"""Cards and sizes as a person types them, and this machine."""

import os

import pytest

from msa_train.errors import ConfigError
from msa_train.hardware import (
    CARDS,
    available_memory,
    gb,
    named_as,
    parse_bandwidth,
    parse_bytes,
    parse_cards,
    parse_cluster,
    parse_count,
    this_machine,
    threads_each,
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


def test_a_bandwidth_is_bytes_a_second():
    assert parse_bandwidth("450GB/s", "link") == parse_bandwidth("450 GB", "link") == 450e9
    for text in ("fast", "30", "/s"):
        with pytest.raises(ConfigError, match=f"link is '{text}': give bytes a second such as"):
            parse_bandwidth(text, "link")


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


def test_machines_of_equal_cards_and_what_joins_them():
    two = parse_cluster("16xH100-80GB")
    assert (two.nodes, two.per_node, two.link, two.network) == (2, 8, 450e9, 50e9)
    # within a machine, over the network cards of all members there, and over one of them
    assert two.bandwidth(8, 1) == 450e9
    assert two.bandwidth(16, 1) == 400e9 and two.bandwidth(2, 8) == 50e9
    assert parse_cluster("4xA800-80GB").per_node == 4
    own = parse_cluster("8x48GB@864GB/s@362TFLOPS", 4, link=30e9, network=5e9)
    assert own.nodes == 2 and own.bandwidth(8, 1) == 20e9
    for text, given, said in (
        ("12xH100-80GB", {}, "no whole number of machines of 8"),
        ("8xH100-80GB", {"per_node": 0}, r"machines of 0 \(per-node\)"),
        ("none", {}, "cards whose peak is known"),
        ("8x48GB@864GB/s", {}, "cards whose peak is known"),
        ("16xL40S-48GB", {}, "give --network"),
        ("2x48GB@864GB/s@362TFLOPS", {}, "give --link"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_cluster(text, **given)


def test_a_card_is_as_fast_as_its_maker_prints():
    assert all(card.link for card in CARDS.values())
    assert {name for name, card in CARDS.items() if card.network} == {
        "a100-40gb", "a100-80gb", "a800-80gb", "h100-80gb", "h800-80gb", "h200-141gb",
    }  # fmt: skip


def test_bytes_and_counts_as_a_person_reads_and_writes_them():
    assert [gb(size) for size in (17, 2.5e3, 999e9, 4e12)] == [
        "17 B",
        "2.50 kB",
        "999.0 GB",
        "4.00 TB",
    ]
    assert parse_count("158.95B", "tokens") == 158_950_000_000 == parse_count("158.95G", "tokens")


def test_processes_divide_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(ranks) for ranks in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_each(ranks) for ranks in (1, 2, 3)] == [3, 3, 2]
