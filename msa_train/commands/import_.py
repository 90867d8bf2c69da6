"""`msa import`: a pretrained backbone becomes a folder that training starts from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_json, print_json


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "import", help="pretrained backbone (Hugging Face folder or GGUF file) -> start folder"
    )
    parser.add_argument(
        "source", type=Path,
        help="folder with config.json, safetensors and tokenizer.json, or a GGUF file, of Llama 3, "
        "SmolLM2, Qwen2.5 or Qwen3",
    )  # fmt: skip
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument(
        "--router-layers",
        default="upper_half",
        metavar="LAYERS",
        help="layers that get a router: upper_half (default), all, or numbers such as 1,5,8",
    )
    parser.add_argument(
        "--protocol-tokens",
        choices=("spell", "add"),
        default="spell",
        help="control tokens that the vocabulary lacks: spelled in ordinary tokens (default), or "
        "added as new rows of embedding and head",
    )
    parser.add_argument(
        "--dtype",
        choices=("source", "float32", "bfloat16", "float16"),
        default="source",
        help="of the weights written: as in the source, quantised ones as float32 (default)",
    )
    add_json(parser)
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    from msa_train.interop.backbones.convert import ImportSettings, import_backbone

    settings = ImportSettings(options.router_layers, options.protocol_tokens, options.dtype)
    report = import_backbone(options.source, options.target, settings)
    if options.json:
        print_json(asdict(report))
    else:
        _show(report)
    return 0


def _show(report: Any) -> None:
    print(f"{report.target}: {report.name}, {report.licence or 'licence not stated'}")
    print(
        f"  {report.architecture}, {report.layers} layers, {report.parameters:,} parameters; "
        f"routers in layers {', '.join(map(str, report.router_layers))}, "
        f"{report.router_parameters:,} parameters, begun as their layers' key projections"
    )
    print(f"  weights: {_counts(report.stored)} read, {_counts(report.written)} written")
    print(f"  tokens: {report.vocabulary:,} of {report.rows:,} rows")
    for token, what in report.protocol_tokens.items():
        print(f"  {token}: {what}")
    if report.rope_scaling is not None:
        print(
            f"  positions: {report.rope_scaling['rope_type']}, {report.rope_scaling['factor']:g}x"
        )
    print(f"  chat template: {'kept' if report.chat_template else 'none'}")
    print(
        f"  {report.bytes / 1e6:,.0f} MB in {report.seconds:.1f} s, "
        f"weights {report.fingerprint['weights'][:12]}"
    )


def _counts(forms: dict[str, int]) -> str:
    return ", ".join(f"{count} {form}" for form, count in forms.items())
