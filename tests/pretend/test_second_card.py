"""What runs with `--device cuda:1` while cuda:0 is the current card: all of it on the second one.

The pretence refuses a launch on another card than that of its tensors, and a tensor of one card
beside those of another; here nothing else is left on cuda:0 either, and answers are the CPU's.
"""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from msa_kernels import chunk_mean, quantise, quantised_document_scores

from msa_train.bench import runner
from msa_train.cli import main
from msa_train.commands import bench
from msa_train.model import ops
from tests.memory.tiny import tiny_documents, tiny_export
from tests.pretend.cards import WrongCardError
from tests.pretend.cuda import counting, launched, pretended_cuda
from tests.pretend.test_kernels import BUDGETS, HEADS, TOKENS, WIDTH, Problem, offsets, states


@pytest.fixture
def second():
    with torch.autograd.set_multithreading_enabled(False), pretended_cuda(1) as device:
        yield device


def test_every_kernel_is_launched_on_the_card_of_its_tensors(second):
    with counting() as counts:
        problem = Problem(second, learns=True)
        for name, *_ in BUDGETS:
            getattr(problem, name)().float().sum().backward()
        chunk_mean(problem.v, problem.query_cu, 8).float().sum().backward()
        small = quantise(problem.keys.detach(), HEADS, "int8")
        for rows in (1, TOKENS):
            query = states(second, rows, WIDTH, dtype=torch.float32), offsets(second, rows)
            quantised_document_scores(*query, small, problem.chunk_cu)
    kernels = {each.what.split("Triton's ")[1] for each in counts.log if "Triton's" in each.what}
    assert len(kernels) >= 15, kernels
    assert not counts.elsewhere(1)


class FromLiger:
    """An autograd function of Liger's, which is not installed here: its host code starts kernels
    on whatever card is the current one."""

    def __init__(self, compute):
        self.compute = compute

    def apply(self, *given):
        launched("Triton's", [x for x in given if isinstance(x, torch.Tensor)])
        return self.compute(*given)


FUSED = {
    "rms_norm": ("RMSNorm", lambda x, weight, *_: x * weight),
    "swiglu": ("SiLUMul", lambda gate, up: F.silu(gate) * up),
    "fused_linear_cross_entropy": (
        "FusedLinearCrossEntropy", lambda h, weight, labels, *_: [F.linear(h, weight).sum()],
    ),
}  # fmt: skip


def test_fused_operations_are_launched_on_the_card_of_their_tensors(second, monkeypatch):
    for file, (name, compute) in FUSED.items():
        module = SimpleNamespace(**{f"Liger{name}Function": FromLiger(compute)})
        monkeypatch.setitem(sys.modules, f"liger_kernel.ops.{file}", module)
    monkeypatch.setattr(ops, "_liger_installed", lambda: True)
    x, labels = torch.ones(3, 4, device=second), torch.zeros(3, dtype=torch.long, device=second)
    with pytest.raises(WrongCardError, match="launched on cuda:0"):
        launched("Triton's", [x])
    norm = ops.RMSNorm(4, 1e-6)
    norm.weight = torch.nn.Parameter(torch.ones(4, device=second))
    with counting() as counts:
        ops.swiglu(norm(x), x)
        ops.linear_cross_entropy_sum(x, x, labels)
    assert sum("Triton's" in each.what for each in counts.log) == 3, counts
    assert not counts.elsewhere(1)


def answers(folder, device, capsys):
    """What `msa ask` answers on a device from the memory that `msa memory build` made there."""
    export, corpus, bank = folder / "export", folder / "corpus.jsonl", folder / f"bank-{device}"
    placed = "--device", device, "--compute", "float32"
    built = bank, export, corpus, "--dtype", "float32", *placed
    assert main(["memory", "build", *map(str, built)]) == 0
    capsys.readouterr()
    given = export, bank, "Who sleeps?", "Rain?", "--retrieval", "memory", "--json", *placed
    assert main(["ask", *map(str, given), "--max-tokens", "4"]) == 0
    return [each["text"] for each in json.loads(capsys.readouterr().out)]


def test_a_memory_is_built_and_asked_on_the_second_card(tmp_path, capsys):
    """Encoded, searched and read, prefilled, and written on by steps that graphs captured."""
    tiny_export(tmp_path / "export")
    lines = [json.dumps({"id": d.id, "text": d.text}) for d in tiny_documents() if d.text]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    expected = answers(tmp_path, "cpu", capsys)
    with pretended_cuda(), counting() as counts:
        found = answers(tmp_path, "cuda:1", capsys)
    assert found == expected and all(found)
    assert not counts.elsewhere(1), counts.elsewhere(1)
    done = {"launch", "alloc", "copy", "sync", "record", "wait", "capture", "captured"}
    assert done <= counts.kinds()
    assert any("a graph" in each.what for each in counts.log if each.kind == "launch")


def test_a_benchmark_measures_the_card_that_it_was_given(second):
    """Its events and peak memory are the current card's; its processes are told which that is."""
    for given, device, card in (("cuda:1", "cuda:1", 1), ("cuda", "cuda:0", 0), ("cpu", "cpu", 0)):
        assert bench._device(SimpleNamespace(device=given)) == device
        assert torch.cuda.current_device() == runner._card() == card


def test_ranks_that_encode_take_no_card_by_number(second, tmp_path, capsys):
    build = [
        "memory",
        "build",
        str(tmp_path / "bank"),
        str(tiny_export(tmp_path / "export")),
        "pydocs",
    ]
    assert main([*build, "--ranks", "2", "--device", "cuda:1"]) == 2
    assert "--device cuda:1 with --ranks 2" in capsys.readouterr().err
