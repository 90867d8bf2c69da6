"""Exports in transformers: the backbone's own numbers, and the answers of `msa ask`."""

import copy
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, pipeline
from transformers.modeling_outputs import CausalLMOutputWithPast

from data_pipeline.protocol import END_OF_RETRIEVE, IM_END, REF_END
from msa_train.cli import main
from msa_train.errors import BankError, CheckpointError, ConfigError, MissingDependencyError
from msa_train.interop import huggingface
from msa_train.interop.huggingface import (
    InterleaveLimits,
    MemoryGenerateOutput,
    MSAConfig,
    MSAForCausalLM,
)
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import Request
from tests.interop.backbones.models import CASES
from tests.interop.huggingface.folders import (
    bank,
    batch,
    imported,
    its_bank,
    opened,
    prompts,
    tokenizer_of,
    trained_here,
)
from tests.memory.building import document
from tests.memory.engine.test_engine import scripted
from tests.memory.tiny import tiny_documents

EXACT = {"rtol": 1e-5, "atol": 1e-5}
QUESTIONS = ("What is the code of the harbour?", "Who sleeps standing?")


def its_tokens(theirs, given, **settings):
    """What transformers' own model generates."""
    ends = {"eos_token_id": 2, "pad_token_id": 0}
    return theirs.generate(**given, max_new_tokens=12, **ends, **settings)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_transformers(case):
    theirs, folder = imported(case)
    ours, given = opened(folder), batch()
    there = given["attention_mask"].bool()
    with torch.no_grad():
        expected, found = theirs(**given).logits, ours(**given).logits
        assert found.shape == expected.shape
        torch.testing.assert_close(found[there], expected[there], **EXACT)
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    whole = its_tokens(theirs, given, **wanted), its_tokens(ours, given, **wanted)
    assert torch.equal(whole[0].sequences, whole[1].sequences)
    for one, other in zip(*(torch.stack(each.logits) for each in whole), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True, "top_k": 20}], ids=str)
def test_beams_and_samples_are_transformers(how):
    theirs, folder = imported("llama")
    found = []
    for model in (theirs, opened(folder)):
        torch.manual_seed(1)
        found.append(its_tokens(model, batch(), **how))
    assert torch.equal(*found)


def test_a_cache_goes_on_with_one_token_or_several():
    theirs, folder = imported("qwen3")
    ours, given = opened(folder), batch((12, 12))["input_ids"]
    with torch.no_grad():
        expected = theirs(given).logits
        cache = ours(given[:, :5], use_cache=True).cache
        for begin, end in ((5, 6), (6, 10), (10, 12)):
            found = ours(given[:, begin:end], cache=cache)
            torch.testing.assert_close(found.logits, expected[:, begin:end], **EXACT)
            assert found.cache is cache and cache.get_seq_length() == end


def test_rows_of_a_cache_may_grow_by_different_numbers():
    theirs, folder = imported("llama-llama3")
    ours, given = opened(folder), batch((9, 9))["input_ids"]
    mask = torch.ones_like(given)
    mask[1, 5:7] = 0
    with torch.no_grad():
        cache = ours(given[:, :5], use_cache=True).cache
        found = ours(given[:, 5:], attention_mask=mask, cache=cache).logits
        torch.testing.assert_close(found[0], theirs(given[:1]).logits[0, 5:], **EXACT)
        short = torch.cat([given[1:, :5], given[1:, 7:]], 1)
        torch.testing.assert_close(found[1, 2:], theirs(short).logits[0, 5:], **EXACT)


def test_the_loss_and_its_gradients_are_transformers():
    theirs, folder = imported("qwen2")
    theirs, ours = copy.deepcopy(theirs).train(), opened(folder).train()
    given = batch((9, 9))
    losses = [model(**given, labels=given["input_ids"]).loss for model in (theirs, ours)]
    torch.testing.assert_close(*losses, **EXACT)
    for loss in losses:
        loss.backward()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, weight.grad, **EXACT)


def test_kept_logits_are_the_last_or_those_named():
    _, folder = imported("llama")
    ours, given = opened(folder), batch()
    with torch.no_grad():
        every = ours(**given).logits
        assert torch.equal(ours(**given, logits_to_keep=2).logits, every[:, -2:])
        named = torch.tensor([0, 4])
        torch.testing.assert_close(ours(**given, logits_to_keep=named).logits, every[:, named])
        assert torch.equal(ours(**given, return_dict=False)[0], every)


def asked_by_command(capsys, retrieval):
    """What `msa ask` prints."""
    given = [str(trained_here()), str(its_bank()), *QUESTIONS, "--retrieval", retrieval]
    assert main(["ask", *given, "--max-tokens", "6", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "retrieval", ["router", "memory", pytest.param("generate", marks=pytest.mark.slow)]
)
def test_a_memory_is_asked_as_msa_ask_asks_it(capsys, retrieval):
    """The random model writes 1,000 characters of ids before it answers: generate is slow."""
    model, given = opened(trained_here()), prompts(trained_here(), *QUESTIONS)
    how = {"memory": its_bank(), "max_new_tokens": 6}
    how |= {} if retrieval == "generate" else {"retrieval": retrieval}
    found = model.generate(**given, **how, return_dict_in_generate=True)
    expected = asked_by_command(capsys, retrieval)
    assert isinstance(found, MemoryGenerateOutput)
    for each in [
        *expected,
        *(mine := [json.loads(json.dumps(a.to_json())) for a in found.answers]),
    ]:
        del each["seconds"]
    assert mine == expected
    columns, tokenizer = given["input_ids"].shape[1], tokenizer_of(trained_here())
    assert torch.equal(found.sequences[:, :columns], given["input_ids"])
    for row, answer, sources in zip(found.sequences, found.answers, found.sources, strict=True):
        new = tokenizer.decode(row[columns : columns + len(answer.ids)], skip_special_tokens=True)
        assert new == answer.text
        assert [source.number for source in sources] == list(answer.evidence)


def test_rounds_and_bounds_are_the_engines():
    limits = InterleaveLimits(rounds=2, retrieval_characters=40, answer_tokens=6)
    model, given = opened(trained_here(), memory=its_bank()), prompts(trained_here(), *QUESTIONS)
    found = model.generate(**given, limits=limits, return_dict_in_generate=True)
    engine = MemoryEngine(model.decoder, model.origin.tokenizer, model.memory)
    expected = engine.ask(QUESTIONS, limits=limits)
    assert [(a.text, a.rounds, a.forced) for a in found.answers] == [
        (a.text, a.rounds, a.forced) for a in expected
    ]
    assert all("40 characters of ids" in answer.forced[0] for answer in found.answers)


def test_documents_are_read_round_by_round(monkeypatch):
    scripted(monkeypatch, ["[41][2][9]", REF_END], ["[17]", REF_END], [END_OF_RETRIEVE],
             ["The answer to the question is: ça", IM_END])  # fmt: skip
    model, given = opened(trained_here(), memory=its_bank()), prompts(trained_here(), QUESTIONS[0])
    found = model.generate(**given, return_dict_in_generate=True)
    (answer,), (sources,) = found.answers, found.sources
    assert [each.evidence for each in answer.rounds] == [(2, 41), (17,), ()]
    texts = {document.number: document.text for document in tiny_documents()}
    assert [(s.number, s.text) for s in sources] == [(n, texts[n]) for n in (2, 17, 41)]
    new = tokenizer_of(trained_here()).decode(found.sequences[0, given["input_ids"].shape[1] :])
    assert new == "The answer to the question is: ça" + IM_END


SHORT = {"retrieval": "memory", "max_new_tokens": 5}


def test_a_memory_may_be_a_folder_a_bank_a_view_or_attached():
    model, given = opened(trained_here()), prompts(trained_here(), *QUESTIONS)
    expected = model.generate(**given, memory=str(its_bank()), **SHORT)
    snapshot = BankSnapshot.open(its_bank())
    for memory in (snapshot, model.open_memory(snapshot)):
        assert torch.equal(model.generate(**given, memory=memory, **SHORT), expected)
    assert model.attach_memory(its_bank()) is model
    ids, mask = given.values()
    assert torch.equal(model.generate(ids, attention_mask=mask, **SHORT), expected)
    attached = opened(trained_here(), memory=its_bank())
    assert torch.equal(attached.generate(**given, **SHORT), expected)
    attached.detach_memory()
    plain = attached.generate(**given, max_new_tokens=5)
    assert attached.memory is None and plain.shape[1] == given["input_ids"].shape[1] + 5


def test_texts_are_the_bank_that_would_be_built_of_them(tmp_path):
    texts = [each.text for each in tiny_documents()]
    folder = bank(trained_here(), tmp_path / "bank", [document(i, t) for i, t in enumerate(texts)])
    model, given = opened(trained_here()), prompts(trained_here(), *QUESTIONS)
    wanted = {"retrieval": "router", "return_dict_in_generate": True, "max_new_tokens": 5}
    one, other = (model.generate(**given, memory=memory, **wanted) for memory in (texts, folder))
    assert torch.equal(one.sequences, other.sequences)
    assert [[s.text for s in each] for each in one.sources] == [
        [texts[number] for number in answer.evidence] for answer in other.answers
    ]


def test_a_conversation_is_asked_with_its_turns():
    _, folder = imported("llama")
    model, tokenizer = opened(folder, memory=["the word 7", "another word"]), tokenizer_of(folder)
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "a word?"},
        {"role": "assistant", "content": "the word"}, {"role": "user", "content": "another?"},
    ]  # fmt: skip
    given = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**given, max_new_tokens=9, retrieval="router", stop_strings=["word"])
    earlier = (("user", "a word?"), ("assistant", "the word"))
    request = Request(
        "another?", model.memory, "router", InterleaveLimits(answer_tokens=9),
        instructions="be brief", earlier=earlier, stop=("word",),
    )  # fmt: skip
    (answer,) = MemoryEngine(model.decoder, model.origin.tokenizer, model.memory).answer([request])
    assert tokens[0].tolist() == given["input_ids"][0].tolist() + list(answer.ids)


def test_samples_follow_torchs_seed():
    model, given = opened(trained_here(), memory=its_bank()), prompts(trained_here(), *QUESTIONS)
    how = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 8, "retrieval": "memory"}
    found = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        found.append(model.generate(**given, **how))
    assert torch.equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])


def test_a_pipeline_answers_from_a_memory():
    asked = pipeline("text-generation", model=str(trained_here()))
    assert isinstance(asked.model, MSAForCausalLM)
    given = prompts(trained_here(), QUESTIONS[0])
    tokens = asked.model.generate(**given, memory=its_bank(), **SHORT)
    # Greedy, as all that answers from a memory, though pipelines would sample.
    (found,) = asked(QUESTIONS[0], memory=its_bank(), return_full_text=False, **SHORT)
    new = tokens[0, given["input_ids"].shape[1] :]
    assert found["generated_text"] == asked.tokenizer.decode(new, skip_special_tokens=True)
    asked.model.attach_memory(["Rain."])
    (whole,) = asked(QUESTIONS[0], return_dict_in_generate=True, **SHORT)
    assert whole["generated_text"].startswith(QUESTIONS[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4}, r"num_beams \(4\) cannot be honoured"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences .* repeat"),
        ({"max_length": 40}, "max_length .* give max_new_tokens"),
        ({"top_k": 5, "do_sample": True}, r"top_k \(5\)"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"eos_token_id": 7}, "eos_token_id .* stop_strings"),
        ({"streamer": object()}, r"streamer \(object\)"),
        ({"output_scores": True}, "output_scores"),
        ({"max_new_token": 5}, "max_new_token "),
        ({"generation_config": transformers.GenerationConfig(num_beams=2)}, "num_beams"),
        ({"retrieval": "guess"}, "retrieval is 'guess'"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1"),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else "",  # the same everywhere
)
def test_what_a_memory_cannot_honour_is_refused_by_name(settings, words):
    model, given = opened(trained_here(), memory=["Rain."]), prompts(trained_here(), "Rain?")
    with pytest.raises(ConfigError, match=words):
        model.generate(**given, **settings)


def test_what_changes_nothing_is_accepted():
    model, given = opened(trained_here(), memory=["Rain."]), prompts(trained_here(), "Rain?")
    how = {"num_beams": 1, "use_cache": True, "top_k": 50, "do_sample": False, "streamer": None}
    tokens = model.generate(**given, **SHORT, **how)
    config = transformers.GenerationConfig(max_new_tokens=5)
    found = model.generate(**given, generation_config=config, retrieval="memory")
    assert torch.equal(found, tokens)
    with pytest.raises(ConfigError, match="input_ids, the question, are missing"):
        model.generate()


def test_the_backbone_is_not_computed_over_a_memory_in_silence():
    model, given = opened(trained_here(), memory=["Rain."]), prompts(trained_here(), "Rain?")
    with pytest.raises(ConfigError, match=r"forward reads none.*detach_memory\(\) first"):
        model(**given, labels=given["input_ids"])
    model.detach_memory()
    model(**given)
    for settings in ({"retrieval": "router"}, {"limits": InterleaveLimits()}):
        with pytest.raises(ConfigError, match="need a memory, and there is none"):
            model.generate(**given, **settings)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(**given, prompt_lookup_num_tokens=2)
    for wrong, words in (
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds cannot be"),
        ({}, "input_ids are missing"),
        ({**given, "output_attentions": True}, "output_attentions cannot be"),
        ({**given, "cache": DynamicCache()}, "cache is a DynamicCache"),
    ):
        with pytest.raises(ConfigError, match=words):
            model(**wrong)
    cache = model(**given).cache
    with pytest.raises(ConfigError, match="2 rows, the cache 1"):
        model(torch.ones(2, 1, dtype=torch.int64), cache=cache)


def test_folders_that_are_no_exports_are_refused(tmp_path):
    for wrong in ("someone/model", tmp_path):
        with pytest.raises(CheckpointError, match="is no complete export"):
            MSAForCausalLM.from_pretrained(wrong)
    with pytest.raises(CheckpointError, match=r"config\.json says layers 2"):
        opened(trained_here(), num_hidden_layers=2)
    for settings in ({"load_in_8bit": True}, {"subfolder": "a"}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} cannot be honoured"):
            MSAForCausalLM.from_pretrained(trained_here(), **settings)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(trained_here()))
    with pytest.raises(ConfigError, match="was made from a config"):
        model.attach_memory(["Rain."])


def test_the_weights_are_in_the_dtype_that_is_asked_for():
    _, folder = imported("llama")
    model, info = opened(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert model.dtype == torch.bfloat16 and not any(info.values())
    model.attach_memory(["the word 7"])
    assert model.generate(**prompts(folder, "a word?"), **SHORT).shape[0] == 1


def test_a_saved_model_opens_again_as_it_was(tmp_path):
    model, given = opened(trained_here()), prompts(trained_here(), *QUESTIONS)
    model.generation_config.max_new_tokens = 7
    expected = model.generate(**given, memory=its_bank(), retrieval="memory")
    model.save_pretrained(tmp_path / "again")
    tokenizer_of(trained_here()).save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again", memory=its_bank())
    assert again.origin.fingerprint == model.origin.fingerprint
    assert torch.equal(again.generate(**given, retrieval="memory"), expected)
    rough = opened(trained_here(), dtype=torch.bfloat16)
    rough.save_pretrained(tmp_path / "rough")  # computed in another dtype, not changed
    assert opened(tmp_path / "rough").origin.fingerprint == model.origin.fingerprint
    with pytest.raises(CheckpointError, match="exists: remove it"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(ConfigError, match="max_shard_size cannot be honoured"):
        model.save_pretrained(tmp_path / "other", max_shard_size="1GB")
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_weights_that_were_trained_are_another_export(tmp_path):
    model, given = opened(trained_here()).train(), prompts(trained_here(), "Rain?")
    model.attach_memory(["Rain."])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.detach_memory()
    model(**given, labels=given["input_ids"]).loss.backward()
    model.attach_memory(["Rain."])
    optimizer.step()
    with pytest.raises(BankError, match="changed since the memory was attached"):
        model.generate(**given)
    with pytest.raises(BankError, match="changed since they were loaded"):
        model.attach_memory(its_bank())
    model.attach_memory(["Rain."])
    expected = model.eval().generate(**given, **SHORT)
    model.save_pretrained(tmp_path / "trained")
    again = opened(tmp_path / "trained", memory=["Rain."])
    assert torch.equal(again.generate(**given, **SHORT), expected)
    for name, weight in model.named_parameters():
        assert torch.equal(again.get_parameter(name), weight)
    with pytest.raises(BankError, match="built by another model"):
        again.attach_memory(its_bank())


def test_without_transformers_or_with_an_old_one_the_extra_is_named(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        with pytest.raises(MissingDependencyError, match=r"cannot be imported.*\[huggingface\]"):
            importlib.reload(huggingface)
    monkeypatch.delitem(CausalLMOutputWithPast.__dataclass_fields__, "cache")
    with pytest.raises(MissingDependencyError, match=r"install 5\.24 or later.*\[huggingface\]"):
        importlib.reload(huggingface)


def test_the_classes_are_registered_without_remote_code():
    config = AutoConfig.from_pretrained(trained_here())
    assert type(config) is MSAConfig and type(opened(trained_here())) is MSAForCausalLM


def test_the_examples_of_the_page_run(tmp_path, capsys, monkeypatch):
    page = Path(__file__).resolve().parents[3] / "docs" / "backbones.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "fitted").symlink_to(imported("llama")[1])
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(compile(example, str(page), "exec"), {})
    assert len(examples) == 2 and "When was the harbour" in capsys.readouterr().out
