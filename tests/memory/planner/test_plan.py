"""Plans: sums by hand, the publication's numbers, what fits and what would."""

from dataclasses import replace

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.hardware import CARDS, Card, Machine, parse_bytes, parse_cards
from msa_train.memory.bank.build import bank_form
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.manifest import BankManifest
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter, create_bank
from msa_train.memory.engine.model_runner import ModelRunner
from msa_train.memory.engine.scheduler import PREFILL_TOKENS
from msa_train.memory.planner import plan as plan_module
from msa_train.memory.planner.plan import (
    BankSize,
    Serving,
    activations,
    chunks_read,
    parameters,
    plan,
)  # fmt: skip
from msa_train.memory.search import device_search
from msa_train.memory.search.device_search import DocumentRows
from msa_train.memory.search.keys import LayerKeys
from msa_train.model.config import PRESETS
from msa_train.model.decoder import MSADecoder
from tests.batches import tiny_config
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

FOUR_B = PRESETS["4b"]
BANK = BankSize.of_tokens(100_000_000, 64)


def planned(gpus, host="512GiB", bank=BANK, config=FOUR_B, **serving):
    return plan(
        config, bank, Machine(parse_cards(gpus), parse_bytes(host, "host-ram")), Serving(**serving)
    )


def size(found, start, place=None):
    [item] = [i for i in found.items if i.what.startswith(start) and place in (None, i.place)]
    return item.bytes


def test_the_publications_numbers():
    found = planned("2xA800-80GB", keys="bfloat16", states="host")
    assert BANK.chunks == 1_562_500
    assert size(found, "bank: router keys") == 57_600_000_000
    assert size(found, "bank: pooled K and V") == 115_200_000_000
    assert size(found, "router keys") == 28_800_000_000  # on each of two cards
    assert size(found, "pooled K and V", "host") == 115_200_000_000
    assert found.need("disk") == pytest.approx(173e9, rel=2e-3)
    eight = planned("1xA800-80GB", keys="int8")
    scales_and_bounds = 18 * (1_562_500 * (8 * 4 + 8) + 4 * 1_562_500)
    assert size(eight, "router keys") == 28_800_000_000 + scales_and_bounds


@pytest.mark.parametrize(
    "gpus, keys, fits",
    [
        ("2xA800-80GB", "bfloat16", True),
        ("2xA800-80GB", "stored", True),
        ("2xA800-80GB", "float32", False),
        ("1xA800-80GB", "bfloat16", False),
        ("1xA800-80GB", "int8", True),
        ("1xA800-80GB", "fp8", True),
        ("4xL40S-48GB", "bfloat16", True),
        ("2xL40S-48GB", "bfloat16", False),
    ],
)
def test_100m_tokens_fit_where_they_should(gpus, keys, fits):
    found = planned(gpus, keys=keys)
    assert found.fits == fits
    if fits:
        found.check()
        return
    with pytest.raises(ConfigError, match=r"each GPU must hold .* GB and has \d+\.\d+ GB .* would"):
        found.check()


def test_what_would_fit_does():
    found = planned("1xA800-80GB", keys="bfloat16")
    ways = "--slots 8, or --keys int8, or 2 of A800-80GB with the settings as they are"
    assert found.to_json()["would_fit"] == f"What would fit: {ways}"
    assert planned("1xA800-80GB", keys="bfloat16", slots=8).fits
    assert not planned("1xA800-80GB", keys="bfloat16", slots=16).fits
    assert planned("1xA800-80GB", keys="int8").fits
    host = planned("2xA800-80GB", "64GiB", keys="bfloat16", states="host")
    assert host.lacking == ("host",)
    assert host.to_json()["would_fit"] == "What would fit: --states mapped"
    small = planned("1xL4-24GB", "4GB", keys="int8")
    assert small.to_json()["would_fit"] == "What would fit: 5 of L4-24GB with --slots 8"
    assert planned("5xL4-24GB", "4GB", keys="int8", slots=8).fits
    huge = BankSize.of_tokens(10**13, 64)
    with pytest.raises(ConfigError, match="No setting would fit: take a smaller memory"):
        planned("1xL4-24GB", bank=huge).check()


def test_every_part_is_summed_over_chunks_layers_and_slots():
    """By loops, for a small model on three cards with a bank that does not divide by three."""
    config = tiny_config()
    bank = BankSize(100, 151, 9000, "float16")
    serving = Serving("stored", "host", 1.0, slots=3, slot_tokens=50, prefill_tokens=70,
                      compute="float32")  # fmt: skip
    found = plan(config, bank, Machine(parse_cards("3x1GB@10GB/s"), 10**9), serving)
    layers = config.router_layers
    width = sum(1 for _ in range(config.kv_heads) for _ in range(config.head_dim))
    largest = max(len(range(rank, 151, 3)) for rank in range(3))
    assert size(found, "router keys") == sum(largest * width * 2 for _ in layers)
    assert size(found, "pooled K and V", "host") == sum(151 * width * 2 * 2 for _ in layers)
    own = sum(2 * width * 4 for _ in range(config.layers) for _ in range(50) for _ in range(3))
    assert size(found, "K/V slots") == own
    assert chunks_read(config, bank) == 5  # of 3 documents with 1.51 chunks each
    read = sum(2 * width * 4 for _ in layers for _ in range(64) for _ in range(3))
    assert size(found, "chunks read by the slots, room for 64") == read
    masks = sum(4 * 50 + sum(4 * (64 + 50) for _ in layers) for _ in range(3))
    assert size(found, "masks") == masks
    prefill = sum(2 * width * 4 for _ in range(config.layers) for _ in range(70))
    states = sum(2 * width * 2 for _ in layers for _ in range(3 * 5))
    assert size(found, "K/V of a prefill, 70 tokens") == prefill + states
    assert size(found, "activations of a prefill") == 70 * 4 * activations(config)
    assert size(found, "logits") == 3 * config.vocab_size * (4 + 5 * 8)
    step = 4 * activations(config) + sum(4 * (64 + 50) for _ in range(config.heads))
    assert size(found, "decode graphs") == 3 * step
    assert size(found, "hot documents") == 1 << 20
    weights = sum(p.numel() for p in MSADecoder(config).parameters())
    assert parameters(config) == weights and size(found, "weights") == 4 * weights
    for place in ("device", "host", "disk"):
        assert found.need(place) == sum(i.bytes for i in found.items if i.place == place)


def test_the_floor_is_reading_until_there_are_many_question_tokens():
    found = planned("2xA800-80GB", keys="bfloat16", question_tokens=32)
    assert found.floor.limit == "memory"
    assert found.floor.ms == pytest.approx(28.8e9 / 2039e9 * 1e3)
    long = planned("2xA800-80GB", keys="bfloat16", question_tokens=200)
    assert long.floor.limit == "arithmetic"
    flops = 2 * 200 * 781_250 * 1024 * 18
    assert long.floor.flops == flops
    assert long.floor.ms == pytest.approx(flops / 312e12 * 1e3)
    assert planned("none").floor is None


def test_a_start_reads_the_keys_of_the_bank_whatever_is_searched():
    for keys in ("bfloat16", "int8"):
        start = planned("2xA800-80GB", keys=keys).start
        assert start.bytes == 57_600_000_000
        assert start.core_seconds == pytest.approx(48)


def test_lengths_of_documents_make_chunks():
    passages = BankSize.of_tokens(100_000_000, 64, document_tokens=80)
    assert passages.documents == 1_250_000
    assert passages.chunks == pytest.approx(1.6 * 100e6 / 64)
    measured = BankSize.of_tokens(5_000_000, 64, chunks_per_1k=20.5)
    assert measured.chunks == 102_500
    for wrong in ({"document_tokens": 0}, {"chunks_per_1k": 3.0}, {"chunks_per_1k": 2000.0}):
        with pytest.raises(ConfigError):
            BankSize.of_tokens(1000, 64, **wrong)
    with pytest.raises(ConfigError, match="every chunk a token"):
        BankSize(5, 4, 3)


def test_a_banks_own_counts(tmp_path):
    model = tiny_model()
    form = bank_form(model.config, FINGERPRINT, "float16")
    create_bank(tmp_path / "bank", form)
    empty = BankSize.of_manifests([BankManifest.load(tmp_path / "bank")])
    assert empty == BankSize(0, 0, 0, "float16")
    planned("none", "3GB", empty, model.config).check()
    with BankWriter(tmp_path / "bank", "add") as writer:
        writer.add(encode_documents(model, tiny_tokenizer(), tiny_documents(), 64, torch.float16))
    found = BankSize.of_manifests([BankManifest.load(tmp_path / "bank")])
    info = BankSnapshot.open(tmp_path / "bank").info()
    assert (found.documents, found.chunks) == (7, info["chunks"])
    keys = sum(f.stat().st_size for f in (tmp_path / "bank").rglob("layer-*.key"))
    assert size(planned("none", "3GB", found, model.config), "bank: router keys") == keys


def test_keys_mapped_from_disk_give_way_and_are_named_slow():
    bank = BankSize.of_tokens(100_000_000, 64, dtype="float16")
    whole = planned("none", "4GB", bank, tiny_config())
    keys = size(whole, "router keys")
    assert whole.fits and not whole.notes and whole.need("host") + keys < 4e9
    tight = planned("none", f"{whole.need('host') + keys // 2} B", bank, tiny_config())
    assert tight.fits and "every query reads the disk" in tight.notes[0]
    slow = planned("none", "24GiB", slots=1)
    assert slow.fits and "every query reads the disk" in slow.notes[0]
    copied = planned("none", "24GiB", keys="float32", slots=1)
    assert not copied.fits and "--keys stored" in copied.to_json()["would_fit"]


def test_8_bit_keys_need_a_single_product():
    router = replace(FOUR_B.router, gate="none", head_reduce="max")
    with pytest.raises(ConfigError, match="single dot product"):
        planned("1xA800-80GB", config=replace(FOUR_B, router=router), keys="int8")


def test_cards_are_compared_by_the_smallest():
    mixed = Machine((CARDS["a800-80gb"], Card("small", 10**9, 1e9)), 10**12)
    assert plan(FOUR_B, BANK, mixed, Serving()).lacking == ("device",)


def test_impossible_settings_are_refused():
    for name, value in {"keys": "int3", "hot_mb": -1, "slots": 0, "compute": "int8"}.items():
        with pytest.raises(ConfigError, match=f"{name} is"):
            Serving(**{name: value})


def test_a_prefill_is_planned_as_the_scheduler_does_it():
    assert Serving().prefill_tokens == PREFILL_TOKENS


def test_a_search_on_a_gpu_is_planned_as_it_is_done():
    assert device_search._BYTES == plan_module._EXACT_BYTES
    documents = 3
    parts = [LayerKeys(torch.zeros(5, 8), torch.tensor([0, 2, 4, 5]), tiny_config().router, 1)]
    table = DocumentRows(parts, torch.device("cpu"))
    gone = table.mask(torch.zeros(documents, dtype=torch.bool))
    held = table.cu.nbytes + table.spans.nbytes + gone.nbytes
    assert plan_module._bounds(tiny_config(), documents, True) - held == 25 - 8  # of one more row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunks", [1, 90])
def test_what_is_planned_of_the_cache_is_what_is_allocated(dtype, chunks):
    config = tiny_config()
    bank = BankSize(10, 10 * chunks, 10**6)
    serving = Serving(slots=5, slot_tokens=100, compute=str(dtype).removeprefix("torch."))
    found = plan(config, bank, Machine((), 10**9), serving)
    model = MSADecoder(config).to(dtype)
    runner = ModelRunner(model, 5, 100, chunks=chunks_read(config, bank))
    taken = sum(weight.nbytes for weight in model.parameters()) + runner.cache_bytes
    assert found.held("model") == taken
