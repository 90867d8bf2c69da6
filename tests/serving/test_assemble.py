"""A server put together: banks that do not fit are refused, and impossible numbers of ranks."""

import copy

import pytest
import torch

from msa_train.cli import main
from msa_train.errors import ConfigError
from msa_train.interop.export import LoadedModel
from msa_train.memory.planner import plan
from msa_train.memory.search.settings import TierSettings
from msa_train.serving.access import ApiKeys
from msa_train.serving.assemble import assemble, check_fits, search_ranks
from msa_train.serving.banks import ServedModel
from msa_train.serving.settings import AllowedHosts, ServerLimits
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer
from tests.serving.running import state_of, tiny_bank


def test_what_does_not_fit_is_refused_with_what_would(tmp_path, monkeypatch, capsys):
    from msa_train.hardware import Machine

    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    monkeypatch.setattr(
        "msa_train.hardware.this_machine",
        lambda devices=(): Machine((), 100 * 10**6),
    )
    bank = tiny_bank(tmp_path / "bank")
    assert main(["serve", "export", "--bank", f"a={bank}"]) == 2
    said = capsys.readouterr().err
    assert "does not fit" in said and "host memory must hold" in said


def test_hot_documents_of_every_bank_are_planned(tmp_path, monkeypatch):

    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    planned = []

    def refused(config, bank, machine, serving):
        planned.append(serving.hot_mb)
        raise ConfigError("seen")

    monkeypatch.setattr("msa_train.memory.planner.plan.plan", refused)
    banks = [f"--bank={name}={tiny_bank(tmp_path / name)}" for name in "abc"]
    assert main(["serve", "export", "--hot-mb", "10", *banks]) == 2
    assert planned == [30]


def test_named_banks_come_first_and_banks_of_the_folder_are_found(tmp_path):
    tiny_bank(tmp_path / "banks" / "found")
    state = state_of(tmp_path)
    try:
        assert [bank.name for bank in state.banks] == ["notes", "found"]
        assert [bank.droppable for bank in state.banks] == [False, True]
        assert state.banks[None].name == "notes"
    finally:
        state.engine.stop()
        state.banks.close()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_what_was_allocated_is_what_was_planned(tmp_path, compute, caplog):
    """Of weights and KV cache, in the dtype that computes; told in the log of the start."""
    bank, dtype = tiny_bank(tmp_path / "a"), getattr(torch, compute)
    model = copy.deepcopy(tiny_model()).to(dtype)
    limits = ServerLimits(concurrent=3, context_tokens=500)
    planned = check_fits(model, [bank], None, TierSettings(), limits, "cpu", 1)
    served = ServedModel("tiny", model, tiny_tokenizer(), FINGERPRINT)
    given = [("a", bank)], None, None, TierSettings(), limits, ApiKeys(), AllowedHosts.of("::1")
    with caplog.at_level("INFO"):
        state = assemble(served, *given, planned=planned)
    try:
        size = plan.gb(planned.held("model"))
        assert f"KV cache in {compute} on cpu: planned {size}, allocated {size}" in caplog.text
        assert planned.serving.compute == compute
    finally:
        state.engine.stop()
        state.banks.close()


def test_ranks_compute_on_cards_of_their_own():
    with (
        pytest.raises(ConfigError, match="--device cuda:1 --ranks 2: rank r computes on card r"),
        search_ranks(2, TierSettings(), 60.0, 300.0, "cuda:1"),
    ):
        pass


def test_one_process_searches_alone():
    with search_ranks(1, TierSettings(), 60.0, 300.0, "cpu") as ranks:
        assert ranks is None


@pytest.mark.parametrize(("count", "timeout_s", "said"), [(0, 60, "--ranks 0"), (2, 0, "-s 0")])
def test_impossible_ranks_are_refused(count, timeout_s, said):
    with (
        pytest.raises(ConfigError, match=said),
        search_ranks(count, TierSettings(), timeout_s, 300.0, "cpu"),
    ):
        pass


def test_a_bad_bank_is_left_to_be_reported_when_it_is_opened(tmp_path):
    paths = [tmp_path / "nowhere", tiny_bank(tmp_path / "good")]
    check_fits(tiny_model(), paths, None, TierSettings(), ServerLimits(), "cpu", 1)
