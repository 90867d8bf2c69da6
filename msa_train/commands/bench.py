"""`msa bench`: speed and memory beside a baseline; a subcommand for each benchmark."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa_train.commands.output import (
    RETRIEVALS,
    add_config,
    add_json,
    config_arguments,
    print_json,
)
from msa_train.commands.placement import add_device, add_placement, device_of, placement

if TYPE_CHECKING:
    from msa_train.interop.export import Placement


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bench", help="measure speed and memory against a baseline")
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")

    kernels = _benchmark(
        benchmarks, "kernels", "every operation beside what it replaces, and its floor", _kernels
    )
    kernels.add_argument(
        "suites", nargs="*", metavar="SUITE", help="of routing, states, attention (default: all)"
    )
    kernels.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="timed runs of each side (default 7)"
    )
    kernels.add_argument(
        "--compile",
        nargs="+",
        metavar="CARD",
        help="time nothing; compile every Triton kernel for these, of sm_80, sm_89, sm_90",
    )
    kernels.add_argument(
        "--launches",
        nargs="+",
        default=(),
        metavar="TEXT",
        help="with --compile: those launches alone whose name has one of these in it",
    )

    for name, meaning, measure in (
        ("layouts", "what a training layout learns for its compute", _layouts),
        ("train", "what a training step costs against its memory", _train),
    ):
        add_device(_benchmark(benchmarks, name, meaning, measure))

    _benchmark(benchmarks, "documents", "what document-parallel ranks save and send", _documents)

    data = _benchmark(
        benchmarks, "data", "samples a second that a process reads from a run's shards", _data
    )
    add_config(data)
    data.add_argument(
        "--samples", type=int, default=64, metavar="N", help="of the first shard (default 64)"
    )
    data.add_argument(
        "--gpus", type=int, default=64, metavar="N", help="that are to be fed (default 64)"
    )
    data.add_argument(
        "--step-s", type=float, metavar="S", help="of a step, as `msa plan train` says it"
    )
    data.add_argument(
        "--tokens", type=float, metavar="N", help="of memory: what building as many would take"
    )

    saving = _benchmark(
        benchmarks, "checkpoint", "what saving and a restart cost a run of two ranks", _checkpoint
    )
    saving.add_argument(
        "--size", choices=("toy", "135m"), default="135m", help="of the model (default 135m)"
    )
    saving.add_argument(
        "--zero-stage", type=int, choices=(1, 2, 3), default=1, help="as in training (default 1)"
    )
    saving.add_argument(
        "--folder", type=Path, metavar="DIR", help="on the disk to measure (default: temporary)"
    )

    goodput = _benchmark(
        benchmarks, "goodput", "time in steps that count, while ranks are killed", _goodput
    )
    goodput.add_argument(
        "--seconds", type=float, default=300.0, help="of each of two runs (default 300)"
    )
    goodput.add_argument(
        "--kill-every", type=float, default=60.0, metavar="S", help="seconds (default 60)"
    )

    encode = _benchmark(
        benchmarks, "encode", "how fast documents are encoded, and what they cost at least", _encode
    )
    encode.add_argument("--export", type=Path, required=True, help="folder of a model")
    encode.add_argument(
        "--corpus", default="pydocs", help="dataset folder or file of documents (default: pydocs)"
    )
    add_placement(encode)

    split = _benchmark(
        benchmarks, "split", "how long a text of a million characters takes to be split", _split
    )
    split.add_argument("--export", type=Path, required=True, help="folder of a model")

    candidates = _benchmark(
        benchmarks, "candidates", "documents that a search in 8-bit keys scores again", _candidates
    )
    candidates.add_argument("--export", type=Path, required=True, help="folder of a model")
    candidates.add_argument("--bank", type=Path, required=True, help="memory bank that it built")
    candidates.add_argument(
        "--questions",
        type=Path,
        required=True,
        help="questions.<split>.jsonl(.gz) of a dataset folder",
    )
    add_placement(candidates)

    memory = _benchmark(
        benchmarks, "memory", "how long a memory takes to open, to search, to extend", _memory
    )
    memory.add_argument("--export", type=Path, help="folder of a model (without: random weights)")
    memory.add_argument(
        "--corpus",
        type=Path,
        help="folder of *.jsonl(.gz) or */corpus.jsonl(.gz) (without: pydocs)",
    )
    memory.add_argument("--quick", action="store_true", help="tiny sizes")
    memory.add_argument(
        "--parts",
        nargs="+",
        default=(),
        metavar="PART",
        help="of scale, pooled, real, layer_4b, append, faiss, dense_ttft (default: all); layer_4b "
        "and faiss have no model, and compute on the CPU",
    )
    add_placement(memory)

    serve = _benchmark(benchmarks, "serve", "a server under clients that ask at once", _serve)
    serve.add_argument("--export", type=Path, help="folder of a model, for which one is started")
    serve.add_argument("--bank", type=Path, help="memory bank that it built")
    serve.add_argument("--url", help="a server that runs, in place of --export and --bank")
    serve.add_argument("--clients", type=int, default=32, help="that ask at once (default 32)")
    serve.add_argument(
        "--silent", type=int, default=0, help="connections beside them that ask nothing (default 0)"
    )
    serve.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    serve.add_argument(
        "--retrieval",
        choices=RETRIEVALS,
        default="generate",
        help="as in msa ask (default generate)",
    )

    gpu = benchmarks.add_parser(
        "gpu",
        help="everything that only a GPU can say, in one sitting",
        description="Measures on one GPU, part after part, each with a process and a time limit of "
        "its own. What was measured on this card before is kept. See docs/gpu.md.",
    )
    gpu.set_defaults(run=_gpu)
    gpu.add_argument(
        "--json", type=Path, default=Path("runs/gpu.json"), metavar="FILE",
        help="what was measured, written after every row (default runs/gpu.json)",
    )  # fmt: skip
    gpu.add_argument(
        "--parts", nargs="+", default=(), metavar="PART",
        help="of accuracy, route, memory, train-4b, train-0.6b, attention, encode, backbone "
        "(default: all)",
    )  # fmt: skip
    gpu.add_argument(
        "--minutes", type=float, default=25.0, help="for all parts together (default 25)"
    )
    gpu.add_argument(
        "--toy", action="store_true", help="the same code at toy size on the CPU; no number counts"
    )
    gpu.add_argument("--again", action="store_true", help="measure what was measured before, too")
    gpu.add_argument(
        "--backbone", type=Path, metavar="DIR", help="from `make backbone`, for the part backbone"
    )
    gpu.add_argument(
        "--page", type=Path, metavar="FILE", help="write the tables there, as docs/results/gpu.md"
    )
    gpu.add_argument(
        "--render", action="store_true", help="measure nothing: write --page from --json alone"
    )


def _benchmark(
    benchmarks: Any, name: str, meaning: str, measure: Callable[[argparse.Namespace], Any]
) -> argparse.ArgumentParser:
    parser = benchmarks.add_parser(name, help=meaning, description=meaning)
    add_json(parser)
    parser.set_defaults(run=_bench, measure=measure)
    return parser


def _bench(options: argparse.Namespace) -> int:
    result = options.measure(options)
    if options.json:
        print_json(result)
    else:
        for row in _rows(result):
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


def _gpu(options: argparse.Namespace) -> int:
    """1 where something could not be measured, which is named; at toy size not for what is left
    out on a CPU."""
    from data_pipeline.errors import DataError
    from msa_train.bench.gpu.battery import Sitting, complete, failures, measure
    from msa_train.bench.gpu.page import write_page
    from msa_train.bench.gpu.results import Results
    from msa_train.errors import ConfigError

    if options.render and options.page is None:
        raise ConfigError("--render without --page: give the file to write")
    if options.render and not options.json.exists():
        raise DataError(f"--render: {options.json} is missing; give the file that was measured")
    _can_be_written(options.json, options.page)
    results = Results.read(options.json)
    if not options.render:
        given = options.parts, options.minutes, options.toy, options.again, options.backbone
        results = measure(Sitting(*given), options.json)
    if options.page is not None:
        write_page(results, options.page)
    for name, part in results.parts.items():
        for row in part.rows:
            if row.value is not None:
                print(f"{name}: {row.what}: {row.value} {row.unit} (floor {row.floor})")
    lines = failures(results)
    for line in lines:
        print(f"not measured: {line}", file=sys.stderr)
    return 0 if options.render or complete(results) else 1


def _can_be_written(measured: Path, page: Path | None) -> None:
    """Before minutes of a GPU are spent. Raises ConfigError, FileError."""
    from msa_train.errors import ConfigError, FileError

    if page is not None and page.resolve() == measured.resolve():
        raise ConfigError(f"--page {page} is --json too: give two files")
    for file in (measured, *([page] if page else ())):
        file.parent.mkdir(parents=True, exist_ok=True)
        code = errno.EISDIR if file.is_dir() else errno.EACCES
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            raise FileError.of(OSError(code, os.strerror(code), str(file)))


def _rows(result: Any) -> Iterator[dict[str, Any]]:
    """A line per row; rows of a benchmark in parts begin with the part's name."""
    if isinstance(result, list):
        yield from result
        return
    for part, rows in result.items():
        for row in rows if isinstance(rows, list) else [rows]:
            yield {"part": part, **row} if isinstance(row, dict) else {part: row}


def _kernels(options: argparse.Namespace) -> Any:
    if options.compile:
        from msa_train.bench.kernels import compiled

        return compiled.measure(options.compile, options.launches)
    from msa_train.bench.kernels.suites import measure

    return measure(options.suites, options.repeats)


def _device(options: argparse.Namespace) -> str:
    """Where it is measured; a GPU becomes the current one, whose events and memory are read."""
    import torch

    device = device_of(options)
    if device != "cpu":
        torch.cuda.set_device(device)
    return device


def _placement(options: argparse.Namespace) -> Placement:
    _device(options)
    return placement(options)


def _layouts(options: argparse.Namespace) -> Any:
    from msa_train.bench.layouts import measure

    return measure(device=_device(options))


def _train(options: argparse.Namespace) -> Any:
    from msa_train.bench.train import measure

    return measure(device=_device(options))


def _data(options: argparse.Namespace) -> Any:
    from msa_train.bench.data import measure
    from msa_train.config import load_config
    from msa_train.errors import ConfigError

    for name in ("samples", "gpus", "step_s", "tokens"):
        if (value := getattr(options, name)) is not None and not value > 0:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {value}: give a positive number")
    config = load_config(config_arguments(options))
    return measure(config, options.samples, options.gpus, options.step_s, options.tokens)


def _documents(options: argparse.Namespace) -> Any:
    from msa_train.bench.documents import measure

    return measure()


def _checkpoint(options: argparse.Namespace) -> Any:
    from msa_train.bench.checkpoint import measure

    return measure(options.size, options.zero_stage, options.folder)


def _goodput(options: argparse.Namespace) -> Any:
    from msa_train.bench.goodput import measure

    return measure(options.seconds, options.kill_every)


def _encode(options: argparse.Namespace) -> Any:
    from msa_train.bench.encode import measure

    return [measure(options.export, options.corpus, _placement(options))]


def _split(options: argparse.Namespace) -> Any:
    from msa_train.bench.split import measure

    return measure(options.export)


def _candidates(options: argparse.Namespace) -> Any:
    from data_pipeline.dataset import read_questions
    from msa_train.bench.candidates import certified_candidates
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.snapshot import BankSnapshot

    loaded = load_export(options.export, _placement(options))
    bank = BankSnapshot.open(options.bank, loaded.fingerprint)
    asked = [question.question for _, question in read_questions(options.questions)]
    return certified_candidates(loaded.model, loaded.tokenizer, bank, asked)


def _memory(options: argparse.Namespace) -> Any:
    from msa_train.bench.memory.parts import measure

    given = options.export, options.corpus, options.quick, options.parts
    return measure(*given, _placement(options))


def _serve(options: argparse.Namespace) -> Any:
    from msa_train.bench.serve import measure

    return measure(
        options.export, options.bank, options.url, options.clients, options.seconds,
        options.retrieval, options.silent,
    )  # fmt: skip
