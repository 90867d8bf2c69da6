"""Weights and moments by name out of files as DeepSpeed writes them.

tests/distributed/test_layouts.py reads real ones.
"""

from collections import OrderedDict
from dataclasses import make_dataclass

import pytest
import torch
from safetensors.torch import save_file

from msa_train.errors import CheckpointError
from msa_train.model.weights import initial_weight, megatron_shard, weight_maps, weight_shapes
from msa_train.training.stored_states import MOMENTS, RankLayout, StoredStates
from tests.batches import tiny_config

CONFIG = tiny_config("threshold")
NAMES = [each.megatron for each in weight_maps(CONFIG)]
Place = make_dataclass("Place", ["start", "numel"], namespace={"__module__": __name__})


def of_seed(seed, size):
    """Of each tensor-parallel rank: name -> its part."""
    full = {name: initial_weight(name, CONFIG, seed) for name in weight_shapes(CONFIG)}
    return [
        {
            e.megatron: megatron_shard(e, full.__getitem__, CONFIG, r, size)
            for e in weight_maps(CONFIG)
        }
        for r in range(size)
    ]


SEEDS = {"exp_avg": 1, "exp_avg_sq": 2}


def write(folder, layout, steps=3.0):
    """A checkpoint of weights of seed 0 and moments of seeds 1 and 2, all in one group."""
    parts = {key: of_seed(seed, layout.tensor_parallel) for key, seed in SEEDS.items()}
    for tensor, weights in enumerate(of_seed(0, layout.tensor_parallel)):
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, folder / f"weights-tp{tensor}.safetensors")
        moments = {key: parts[key][tensor] for key in MOMENTS}
        step = torch.tensor(steps)
        if layout.zero_stage == 0:
            state = {
                i: {k: moments[k][n] for k in MOMENTS} | {"step": step} for i, n in enumerate(NAMES)
            }
            torch.save(
                {"optimizer": {"state": state}}, folder / f"mp_rank_{tensor:02d}_model_states.pt"
            )
        elif layout.zero_stage == 3:
            write_shares(folder, layout, tensor, moments, step)
        else:
            write_cuts(folder, layout, tensor, moments, step)


def write_cuts(folder, layout, tensor, moments, step):
    """ZeRO-1 and ZeRO-2: all weights one after another, cut wherever that is."""
    lengths = [moments["exp_avg"][name].numel() for name in NAMES]
    flat = {key: torch.cat([moments[key][name].flatten() for name in NAMES]) for key in MOMENTS}
    share = -(-sum(lengths) // layout.data_parallel)
    for rank in range(layout.data_parallel):
        begin, end, first, places = rank * share, (rank + 1) * share, 0, {}
        for name, length in zip(NAMES, lengths, strict=True):
            low, high = max(begin, first), min(end, first + length)
            if low < high:
                places[name] = Place(low - begin, high - low)
            first += length
        state = {0: {key: flat[key][begin:end] for key in MOMENTS} | {"step": step}}
        saved = {"base_optimizer_state": {"state": state}, "param_slice_mappings": [places]}
        path = folder / f"zero_pp_rank_{rank}_mp_rank_{tensor:02d}_optim_states.pt"
        torch.save({"optimizer_state_dict": saved}, path)


def write_shares(folder, layout, tensor, moments, step):
    """ZeRO-3: an equal share of every weight, padded."""
    shapes = OrderedDict((name, moments["exp_avg"][name].shape) for name in NAMES)
    path = folder / f"zero_pp_rank_0_mp_rank_{tensor:02d}_model_states.pt"
    torch.save({"param_shapes": [shapes]}, path)
    for rank in range(layout.data_parallel):
        flat = {}
        for key in MOMENTS:
            shares = []
            for name in NAMES:
                values = moments[key][name].flatten()
                share = -(-len(values) // layout.data_parallel)
                padded = torch.cat(
                    [values, torch.full((share * layout.data_parallel - len(values),), 9.0)]
                )
                shares.append(padded[rank * share : (rank + 1) * share])
            flat[key] = torch.cat(shares)
        saved = {"optimizer_state_dict": {"state": {0: flat | {"step": step}}}}
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_{tensor:02d}_optim_states.pt"
        torch.save({"optimizer_state_dict": saved}, path)


@pytest.mark.parametrize(
    "layout",
    [
        RankLayout(1, 0, 1),
        RankLayout(4, 0, 2),
        RankLayout(3, 1, 1),
        RankLayout(4, 2, 2),
        RankLayout(3, 3, 1),
        RankLayout(6, 3, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2])
def test_every_weight_and_moment_is_found_by_name(tmp_path, layout, size):
    write(tmp_path, layout)
    weights, first, second = (of_seed(seed, size) for seed in range(3))
    for rank in range(size):
        stored = StoredStates(tmp_path, layout, CONFIG, NAMES, rank, size)
        assert float(stored.step) == 3
        for name in NAMES:
            assert torch.equal(stored.weight(name), weights[rank][name]), name
            found = stored.moments(name)
            assert torch.equal(found["exp_avg"], first[rank][name]), name
            assert torch.equal(found["exp_avg_sq"], second[rank][name]), name


def test_what_is_missing_is_named(tmp_path):
    layout = RankLayout(2, 1, 1)
    write(tmp_path, layout)
    with pytest.raises(CheckpointError, match=r"nothing of no such weight; continue it"):
        StoredStates(tmp_path, layout, CONFIG, [*NAMES, "no such weight"], 0, 1)
    (tmp_path / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_1_mp_rank_00_optim_states\.pt"):
        StoredStates(tmp_path, layout, CONFIG, NAMES, 0, 1)


def test_a_run_whose_steps_were_all_skipped_has_no_moments(tmp_path):
    layout = RankLayout(1, 0, 1)
    write(tmp_path, layout)
    torch.save({"optimizer": {"state": {}}}, tmp_path / "mp_rank_00_model_states.pt")
    assert StoredStates(tmp_path, layout, CONFIG, NAMES, 0, 1).step is None


def test_a_layout_says_what_it_is():
    assert str(RankLayout(1, 3, 1)) == "1 rank (ZeRO-3)"
    assert str(RankLayout(8, 1, 2)) == "8 ranks (ZeRO-1, tensor parallel 2)"
    assert str(RankLayout(8, 1, 2, 4)) == "8 ranks (ZeRO-1, tensor parallel 2, document parallel 4)"
    assert RankLayout(8, 1, 2, 2).data_parallel == 4 and RankLayout(8, 1, 2, 2).replicas == 2
