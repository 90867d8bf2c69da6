"""A model under DeepSpeed, on one rank: gradients, steps that are skipped, the router alone."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from msa_train.config import TrainingConfig
from msa_train.errors import ConfigError
from msa_train.training.engine import check_deepspeed
from tests.batches import random_batch, tiny_config
from tests.distributed.ranks import run_ranks


def observe() -> dict:
    """What an engine of a tiny model does; in a process of its own."""
    from msa_train.config import TrainingConfig
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader, part_of
    from msa_train.parallel import groups
    from msa_train.training.engine import Engine
    from tests.batches import OWN_ROUTER, random_batch, tiny_config

    groups.start(tensor_parallel=1, timeout_s=60)
    config = tiny_config("threshold", **OWN_ROUTER)
    model = MSAModel(config)
    model.load_published(initial_reader(config, 0))
    engine = Engine(model, TrainingConfig(weight_decay=0.0), {"all", "reader"})
    found = {"fp32 optimizer": steps_with(engine)}
    batch = random_batch([[4, 9, 1]], [(0, 9), (0, 6)], config)

    def step(scale: float, trains: str = "all") -> dict[str, bool]:
        """Which weights a step changed."""
        before = dict(engine.full_weights())
        losses = engine(batch)
        engine.backward((losses.lm + losses.router) * scale)
        engine.set_learning_rate(1e-2, trains)
        engine.step()
        after = dict(engine.full_weights())
        return {name: not torch.equal(before[name], after[name]) for name in before}

    found |= {"router": step(1.0, "router"), "norm": engine.gradient_norm()}
    found["parts"] = {name: part_of(name, config) for name in found["router"]}
    found["reader"] = step(1.0, "reader")
    found["broken"], found["skipped"] = step(math.nan), engine.skipped
    found["all"], found["whole"] = step(1.0), not engine.skipped
    found["most"] = engine.max_over_ranks(3)
    found["types"] = {weight.dtype for _, weight in engine.full_weights()}
    for part in ("router", "reader"):
        model = MSAModel(config)
        model.load_published(initial_reader(config, 0))
        begun = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        engine = Engine(model, TrainingConfig(precision="bf16"), {part})
        found["bf16 optimizer"] = steps_with(engine)
        step(1.0, part)
        found[f"{part} alone"] = {
            part_of(name, config)
            for name, weight in engine.full_weights()
            if not torch.equal(weight, begun[name])
        }
        learns = [name for name, weight in model.named_parameters() if weight.requires_grad]
        found[f"{part} graph"] = {part_of(name, config) for name in learns}
    return found


def steps_with(engine) -> tuple[str, set[bool]]:
    """What DeepSpeed steps with: the class, and whether each group is one fused kernel."""
    inner = engine._engine.optimizer.optimizer
    kind = type(inner)
    return f"{kind.__module__}.{kind.__name__}", {group["fused"] for group in inner.param_groups}


@pytest.fixture(scope="module")
def found():
    return run_ranks(1, observe)[0]


@pytest.mark.parametrize("part", ["router", "reader"])
def test_a_part_trains_alone(found, part):
    changed = {name for name, moved in found[part].items() if moved}
    assert changed and {found["parts"][name] for name in changed} == {part}
    assert found["norm"] > 0


@pytest.mark.parametrize("part", ["router", "reader"])
def test_what_no_stage_trains_has_no_gradient_and_is_not_rounded(found, part):
    assert found[f"{part} alone"] == found[f"{part} graph"] == {part}


def test_the_reader_is_what_no_document_goes_through(found):
    layers = {"encoder": set(), "reader": set()}
    for name, part in found["parts"].items():
        if part != "router" and ".layers." in name:
            layers[part].add(int(name.split(".layers.")[1].split(".")[0]))
    assert max(layers["encoder"]) == 2 < min(layers["reader"])
    assert found["parts"]["embedding.weight"] == "encoder"


def test_a_step_that_is_not_finite_changes_nothing(found):
    assert found["skipped"] and not any(found["broken"].values())
    assert found["whole"] and sum(found["all"].values()) > sum(found["router"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_steps_with_torchs_fused_adamw(found, precision):
    assert found[f"{precision} optimizer"] == ("torch.optim.adamw.AdamW", {True})


def test_weights_are_told_in_full_precision(found):
    assert found["types"] == {torch.float32} and found["most"] == 3


BEFORE = {"weight_decay": 0.0, "betas": (0.9, 0.95), "clip": 1.0}
AFTER = {"weight_decay": 0.5, "betas": (0.6, 0.7), "clip": 0.01}
RATE = 1e-2
OFFLOADS = {"offload_optimizer": {"device": "cpu"}}
LAYOUTS = {str(stage): {"zero_stage": stage} for stage in range(4)} | {
    "1 offloaded": {"zero_stage": 1, "deepspeed": {"zero_optimization": OFFLOADS}},
    "2 offloaded": {"zero_stage": 2, "deepspeed": {"zero_optimization": OFFLOADS}},
    "3 offloaded": {
        "zero_stage": 3,
        "deepspeed": {"zero_optimization": OFFLOADS | {"offload_param": {"device": "cpu"}}},
    },
}


def losses_of(module, config, seed):
    losses = module(random_batch([[4, 9, 1]], [(0, 9), (0, 6)], config, seed=seed))
    return losses.lm + losses.router


def two_engines(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Layout -> weights after a step, a checkpoint, and a step with other settings."""
    from msa_train.config import TrainingConfig
    from msa_train.parallel import groups
    from msa_train.training.engine import Engine

    groups.start(tensor_parallel=1, timeout_s=60)
    config, found = tiny_config("threshold"), {}
    for name, layout in LAYOUTS.items():
        for seed, chosen in enumerate((BEFORE, AFTER)):
            engine = Engine(model_of(config), TrainingConfig(**layout, **chosen))
            if seed:
                engine.load(folder, name)
            engine.backward(losses_of(engine, config, seed))
            engine.set_learning_rate(RATE)
            engine.step()
            if not seed:
                engine.save(folder, name, torch.save)
        found[name] = dict(engine.full_weights())
    found["by hand"] = two_steps(model_of(config), config)
    return found


def adopted_twice(disk) -> tuple[list[float], list[float], list[int]]:
    """Losses of a step, and of the same after an engine whose states are in files has gone back to
    where it was before; then, whether anything of the states is left in memory."""
    from msa_train.config import TrainingConfig
    from msa_train.parallel import groups
    from msa_train.training import swap_files
    from msa_train.training.engine import Engine
    from tests.pretend.aio import pretend_aio

    pretend_aio()
    groups.start(tensor_parallel=1, timeout_s=60)
    config = tiny_config("threshold")
    engine = Engine(model_of(config), TrainingConfig(**files_in(disk)))

    def step(seed):
        loss = losses_of(engine, config, seed)
        engine.backward(loss)
        engine.set_learning_rate(RATE)
        engine.step()
        return float(loss)

    step(0)
    with engine._states_mapped():
        before = dict(engine.full_weights()), stored_of(engine)
    first = [step(1), step(2)]
    engine.adopt(SimpleNamespace(**before[1]))
    assert all(torch.equal(w, before[0][name]) for name, w in engine.full_weights())
    again = [step(1), step(2)]
    optimizer = engine._engine.optimizer
    swapped = [
        value.numel()
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat)
        if optimizer._swappable_optimizer_subgroup(number)
        for key, value in optimizer.optimizer.state[flat].items()
        if key != "step"
    ]
    swap_files.remove()
    return first, again, swapped


def files_in(disk) -> dict:
    """Settings under which all states but the smallest are in files."""
    zero = {"offload_optimizer": {"device": "nvme", "nvme_path": str(disk)}, "sub_group_size": 5000}
    return {"zero_stage": 3, "deepspeed": {"zero_optimization": zero, "aio": {"block_size": 4096}}}


def stored_of(engine) -> dict:
    """What an engine under ZeRO-3 on one rank holds of its weights, as StoredStates tells it."""
    optimizer, found = engine._engine.optimizer, {}
    for group, flat in zip(
        optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        here = 0
        for parameter in group:
            part = slice(here, here + parameter.ds_numel)
            here += parameter.partition_numel()
            states = {"weight": flat} | optimizer.optimizer.state[flat]
            cut = {key: states[key][part].clone() for key in ("weight", "exp_avg", "exp_avg_sq")}
            found[engine._learned[parameter]] = cut
    return {
        "step": optimizer.optimizer.state[flat]["step"].clone(),
        "weight": lambda name: found[name]["weight"],
        "moments": lambda name: {key: found[name][key] for key in ("exp_avg", "exp_avg_sq")},
    }


def model_of(config):
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader

    model = MSAModel(config)
    model.load_published(initial_reader(config, 0))
    return model


def two_steps(model, config) -> dict[str, torch.Tensor]:
    """AdamW (Loshchilov and Hutter, 2019) written down, with BEFORE's settings, then AFTER's."""
    weights = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in weights.items()}
    second = {name: torch.zeros_like(p) for name, p in weights.items()}
    for seed, chosen in enumerate((BEFORE, AFTER)):
        model.zero_grad()
        losses_of(model, config, seed).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in weights.values()))
        one, two = chosen["betas"]
        for name, p in weights.items():
            gradient = p.grad * min(1.0, chosen["clip"] / (norm + 1e-6))
            first[name] = one * first[name] + (1 - one) * gradient
            second[name] = two * second[name] + (1 - two) * gradient**2
            mean = first[name] / (1 - one ** (seed + 1))
            size = (second[name] / (1 - two ** (seed + 1))).sqrt()
            decay = chosen["weight_decay"] if p.dim() == 2 else 0.0
            p.data -= RATE * (decay * p.data + mean / (size + 1e-8))
    return {name: p.detach() for name, p in weights.items()}


def steps_of_parts(disk) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Layout -> gradient norms of steps in which not all weights have a gradient: of the reader
    alone, and, of two samples, in one alone; and the weights at the end."""
    from msa_train.config import TrainingConfig
    from msa_train.parallel import groups
    from msa_train.training import swap_files
    from msa_train.training.engine import Engine
    from tests.pretend.aio import pretend_aio

    pretend_aio()
    groups.start(tensor_parallel=1, timeout_s=60)
    config, found = tiny_config("threshold", depth=4, layers="1,2"), {}
    for name, layout in (LAYOUTS | {"3 in files": files_in(disk)}).items():
        if not layout["zero_stage"]:
            continue  # DeepSpeed tells no norm there
        engine = Engine(model_of(config), TrainingConfig(**layout), {"all", "reader"})
        norms = []
        for step, parts in enumerate((["all"], ["reader"], ["reader", "all"], ["all", "reader"])):
            for sample, part in enumerate(parts):
                engine.set_learning_rate(RATE, part)
                engine.backward(losses_of(engine, config, 10 * step + sample))
            engine.set_learning_rate(RATE)
            engine.step()
            norms.append(engine.gradient_norm())
        found[name] = norms, dict(engine.full_weights())
    swap_files.remove()
    return found


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    return run_ranks(1, two_engines, tmp_path_factory.mktemp("engines"))[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_goes_on_under_the_settings_of_now(gone_on, layout):
    for name, weight in gone_on["by hand"].items():
        torch.testing.assert_close(gone_on[layout][name], weight, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_offloaded_is_the_same(gone_on, stage):
    for name, weight in gone_on[str(stage)].items():
        torch.testing.assert_close(gone_on[f"{stage} offloaded"][name], weight, rtol=0, atol=1e-6)


def test_no_layout_learns_from_gradients_of_the_step_before(tmp_path):
    found = run_ranks(1, steps_of_parts, tmp_path)[0]
    expected, weights = found.pop("1")
    assert len(expected) == 4 and expected[1] < 0.5 * expected[0]
    for name, (norms, held) in found.items():
        assert norms == pytest.approx(expected, rel=1e-4), name
        for key, weight in weights.items():
            torch.testing.assert_close(held[key], weight, rtol=0, atol=2e-5, msg=f"{name}: {key}")


def test_states_in_files_go_back_and_stay_in_files(tmp_path):
    first, again, in_memory = run_ranks(1, adopted_twice, tmp_path)[0]
    assert again == first and len({*first}) == 2
    assert len(in_memory) > 2 and not any(in_memory)


def test_what_deepspeed_does_not_know_or_cannot_do_is_refused():
    def refused(**zero):
        with pytest.raises(ConfigError) as caught:
            check_deepspeed(TrainingConfig(deepspeed={"zero_optimization": zero}))
        return str(caught.value)

    check_deepspeed(TrainingConfig(deepspeed={"zero_optimization": {"overlap_comm": True}}))
    assert "training.deepspeed.zero_optimization.overlap_com: DeepSpeed says: Extra" in refused(
        overlap_com=True
    )
    said = refused(offload_optimizer={"device": "ram"})
    assert "training.deepspeed.zero_optimization.offload_optimizer.device: DeepSpeed says" in said


def test_states_in_files_are_refused_where_they_cannot_be(tmp_path, monkeypatch):
    def refused(path, **aio):
        zero = {"offload_optimizer": {"device": "nvme", "nvme_path": str(path)}}
        given = {"zero_optimization": zero, "aio": aio}
        with pytest.raises(ConfigError) as caught:
            check_deepspeed(TrainingConfig(zero_stage=3, deepspeed=given))
        return str(caught.value)

    assert "aio.depth is not known here: give block_size" in refused(tmp_path, depth=1)
    assert "aio.use_gds is not known here" in refused(tmp_path, use_gds=True)
    assert "there is no such folder; make it" in refused(tmp_path / "disk")
    builder = "deepspeed.ops.op_builder.AsyncIOBuilder"
    monkeypatch.setattr(f"{builder}.is_compatible", lambda *_, **__: False)
    assert "needs libaio" in refused(tmp_path)
    monkeypatch.setattr(f"{builder}.is_compatible", lambda *_, **__: True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(f"{builder}.load", Mock(side_effect=RuntimeError("no compiler")))
    assert "cannot be built here: no compiler" in refused(tmp_path)
