"""Settings: every shipped file loads, and what is wrong is refused by its key."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import DataError
from msa_train.config import Config, TrainingConfig, load_config, load_config_file, to_plain
from msa_train.errors import ConfigError
from msa_train.model.rope import RopeScaling

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "sweeps")


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    assert isinstance(load_config_file(path), Config)


def test_overrides_reach_nested_settings():
    config = load_config(["--model.router.top_k", "4", "--training.zero_stage", "3"])
    assert config.model.router.top_k == 4
    assert config.training.zero_stage == 3


def test_of_several_files_a_later_one_wins_key_by_key(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {zero_stage: 2, clip: 0.5}")
    (tmp_path / "more.yaml").write_text("training: {zero_stage: 3}")
    files = [word for name in ("run", "more") for word in ("--config", f"{tmp_path}/{name}.yaml")]
    training = load_config(files).training
    assert (training.zero_stage, training.clip) == (3, 0.5)
    assert load_config([*files, "--training.zero_stage", "1"]).training.zero_stage == 1


def test_a_saved_config_loads_equal(tmp_path):
    scaling = "{rope_type: yarn, factor: 4, original_max_position_embeddings: 32768}"
    arguments = ["--model.router.layers", "1,3", "--training.wandb.tags", "[a, b]"]
    config = load_config([*arguments, "--model.rope_scaling", scaling])
    assert config.model.rope_scaling == RopeScaling("yarn", 4.0, 32768)
    config.save(tmp_path / "run.yaml")
    assert to_plain(load_config_file(tmp_path / "run.yaml")) == to_plain(config)


def test_what_yaml_reads_as_false_is_off(tmp_path):
    for number, written in enumerate(("off", '"off"')):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"training: {{wandb: {{mode: {written}}}}}")
        assert load_config_file(path).training.wandb.mode == "off"
    assert load_config(["--training.wandb.mode", "off"]).training.wandb.mode == "off"


def test_settings_of_the_past_are_read_where_they_meant_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: {router: {gate_growth: false, gate_documents: 128, top_k: 5}}"
    )
    config = load_config_file(tmp_path / "run.yaml")
    assert config == load_config(["--model.router.top_k", "5"])
    assert "gate_growth" not in to_plain(config)["model"]["router"]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--model.headz", "3"], "headz"),
        (["--model.heads", "three"], "model.heads"),
        (["--model.heads", "3"], "model.heads"),
        (["--model.head_dim", "7"], "model.head_dim"),
        (["--model.router.top_k", "0"], "model.router.top_k"),
        (["--model.router.layers", "9"], "model.router.layers"),
        (["--model.router.layers", "two"], "model.router.layers"),
        (["--model.router.head_reduce", "max"], "model.router.gate"),
        (["--model.router.gate_growth", "true"], "gate_growth"),
        (["--model.router.gate_documents", "64"], "gate_documents"),
        (["--model.router.gate", "chunk"], "model.router.gate"),
        (
            ["--model.router.layers", "0,1", "--model.router.loss_layers", "upper_half"],
            "loss_layers",
        ),
        (["--training.zero_stage", "5"], "training.zero_stage"),
        (["--training.precision", "bf16", "--training.zero_stage", "0"], "training.zero_stage"),
        (["--training.tensor_parallel", "3"], "training.tensor_parallel"),
        (["--training.sequence_parallel", "true"], "training.tensor_parallel"),
        (["--training.pipeline_parallel", "2"], "document_parallel"),
        (["--training", "{pipeline_parallel: 2}"], "document_parallel"),
        (["--training.deepspeed", "{pipeline: {stages: 2}}"], "document_parallel"),
        (["--training.deepspeed", "{flops_profiler: {}}"], "nothing here was tried with it"),
        (["--training.pooled_states", "sharded"], "training.pooled_states"),
        (
            [
                "--training.pooled_states",
                "sharded",
                "--training.document_parallel",
                "2",
                "--stages",
                "[{name: a, steps: 1, lr: 1, queue_documents: 4}]",
            ],
            "queue_documents",
        ),
        (["--training.clip", "0"], "training.clip"),
        (["--training.clip", ".nan"], "training.clip"),
        (["--stages", "[{name: a, steps: 1, lr: .nan}]"], "lr"),
        (["--stages", "[]"], "stages"),
        (["--stages", "[{name: a, steps: 1, lr: 1, data: {weights: {b: 1}}}]"], "'b'"),
        (["--stages", "[{name: a, steps: 1}]"], "lr"),
        (["--training.batch_samples", "0"], "training.batch_samples"),
        (["--training.wandb.alert_spreads=-1"], "training.wandb.alert_spreads"),
        (["--training.wandb.finish_timeout_s", "0"], "training.wandb.finish_timeout_s"),
        (["--training.wandb.mode", "true"], "training.wandb.mode"),
        (["--training.wandb.artifacts", "all"], "training.wandb.artifacts"),
        (["--config", "nowhere.yaml"], "^--config nowhere.yaml: no such file$"),
        (["--config=nowhere.yaml"], "^--config nowhere.yaml: no such file$"),
        (["--config", "configs"], "^--config configs: a folder; give a YAML file$"),
        (["--training.zero_stag", "3"], "zero_stag 3"),  # not taken for what it begins
    ],
)
def test_wrong_settings_are_refused_by_name(arguments, key):
    with pytest.raises(ConfigError, match=key):
        load_config(arguments)


def test_an_unknown_key_in_a_file_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"router": {"topk": 3}}}))
    with pytest.raises(ConfigError, match="topk"):
        load_config_file(path)


def test_a_model_is_taught_to_answer_as_it_will_be_asked():
    with pytest.raises(ConfigError, match=r"stages\[0\] teaches .* form chat .* model.answers is"):
        load_config(["--data.contexts.answers", "chat"])
    with pytest.raises(ConfigError, match=r"model\.answers is chat"):
        load_config(["--model.answers", "chat"])
    both = ["--model.answers", "chat", "--data.contexts.answers", "chat"]
    assert load_config(both).model.answers == "chat"
    none = ["--model.answers", "chat", "--data.contexts.answer_text", "0"]
    assert load_config(none).data.contexts.answers == "protocol"
    for section in ("model", "data.contexts"):
        with pytest.raises(ConfigError, match="answers"):
            load_config([f"--{section}.answers", "both"])


def test_a_router_that_no_loss_reaches_does_not_train_alone():
    stage = "[{{name: a, steps: 1, lr: 1, trains: router, router_weight: {}}}]"
    with pytest.raises(ConfigError, match=r"stages\[a\].trains is router, .*decouple is false"):
        load_config(["--stages", stage.format(1), "--model.router.decouple", "false"])
    with pytest.raises(ConfigError, match=r"stages\[a\].trains is router, .*router_weight is 0"):
        load_config(["--stages", stage.format(0), "--model.router.gate", "none"])
    assert load_config(["--stages", stage.format(0)]).stages[0].trains == "router"


def test_a_part_of_a_list_cannot_be_overridden():
    with pytest.raises(ConfigError, match=r"--stages\.lr: stages is a list, which is given whole"):
        load_config(["--stages.lr", "3"])


def test_a_config_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"output: caf\xe9\n")
    for arguments in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(ConfigError, match=r"latin.yaml: not UTF-8: .*convert the file"):
            load_config(arguments)


@pytest.mark.parametrize("key", ["seed", "data.seed", "evaluation.seed"])
def test_a_seed_below_zero_is_refused(key):
    with pytest.raises((ConfigError, DataError), match=f"{key} is -1: give 0 or more"):
        load_config([f"--{key}", "-1"])


NVME = {"device": "nvme", "nvme_path": "/scratch"}


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        (1, {"train_batch_size": 8}, r"train_batch_size is not .*: set training\.batch_samples"),
        (1, {"gradient_clipping": 1.0}, r"gradient_clipping .*: set training\.clip"),
        (1, {"bf16": {"enabled": True}}, r"bf16 .*: set training\.precision"),
        (1, {"zero_optimisation": {}}, "zero_optimisation .*: give aio, communication_data_type"),
        (
            1,
            {"zero_optimization": {"stage": 3}},
            r"zero_optimization\.stage .* training\.zero_stage",
        ),
        (1, {"zero_optimization": {"cpu_offload": True}}, "give offload_optimizer"),
        (1, {"zero_optimization": True}, "zero_optimization is True: give a mapping"),
        (0, {"zero_optimization": {"overlap_comm": True}}, "zero_stage is 0: nothing reads it"),
        (
            2,
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            "zero_stage is 2, .* set it to 3",
        ),
        (
            3,
            {"zero_optimization": {"offload_param": NVME}},
            r"offload_param\.device is nvme, .* cpu",
        ),
        (
            3,
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            r"offload_param is given without offload_optimizer: .*cpu",
        ),
        (2, {"zero_optimization": {"offload_optimizer": NVME}}, "nvme with .*_stage 2, .* to 3"),
        (
            3,
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "nvme_path is None: give a folder",
        ),
        (
            3,
            {"zero_optimization": {"offload_optimizer": NVME | {"pipeline_read": True}}},
            "pipeline_read is given, .* leave it out",
        ),
        (
            3,
            {"zero_optimization": {"offload_optimizer": NVME | {"buffer_count": 3}}},
            "buffer_count is 3: give 4 or more",
        ),
        (
            3,
            {"zero_optimization": {"offload_optimizer": NVME}, "aio": [1]},
            "aio is .1.: give a mapping",
        ),
        (
            3,
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            r"offload_optimizer\.ratio is 0\.5, .* leave it out",
        ),
        (
            3,
            {"zero_optimization": {"offload_optimizer": {"super_offload": True}}},
            "super_offload is True, .* leave it out",
        ),
        (3, {"aio": {"block_size": 1}}, "aio is given, but nothing is offloaded to nvme"),
    ],
)
def test_of_deepspeed_what_we_own_is_refused_by_name(stage, given, said):
    with pytest.raises(ConfigError, match=rf"training\.deepspeed\..*{said}"):
        TrainingConfig(zero_stage=stage, deepspeed=given)


def test_the_rest_is_deepspeed_s_as_it_is_given(tmp_path):
    zero = "{zero_optimization: {offload_optimizer: {device: cpu, pin_memory: true}}}"
    config = load_config(["--training.deepspeed", zero])
    assert config.training.deepspeed["zero_optimization"]["offload_optimizer"]["pin_memory"]
    assert config.training.nvme_path is None
    config.save(tmp_path / "run.yaml")
    assert load_config_file(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    ("draws_from", "weights", "said"),
    [
        ("[later]", "{niah: 1}", r"stages\[mixed\]\.draws_from names 'later': .*\(one\)"),
        ("[one, one]", "{niah: 1}", "draws_from names 'one': give names .* each once"),
        ("[one]", "{squad: 1}", r"data\.weights names \['squad'\]: give niah"),
        ("[one]", "{niah: 1, pydocs: 2}", r"data\.weights\.pydocs is 2.0, but .* no samples"),
    ],
)
def test_a_stage_draws_from_what_there_is(draws_from, weights, said):
    stages = (
        "[{name: one, steps: 1, lr: 1, data: {weights: {niah: 1}}}, {name: mixed, steps: 2, lr: 1, "
        f"draws_from: {draws_from}, data: {{weights: {weights}}}}}, "
        "{name: later, steps: 1, lr: 1}]"
    )
    with pytest.raises(ConfigError, match=said):
        load_config(["--stages", stages])


def test_stages_that_all_draw_have_nothing_to_draw_from():
    stages = "[{name: one, steps: 1, lr: 1, draws_from: [one], data: {weights: {niah: 1}}}]"
    with pytest.raises(ConfigError, match=r"all stages have draws_from.* give the first one, one"):
        load_config(["--stages", stages])
