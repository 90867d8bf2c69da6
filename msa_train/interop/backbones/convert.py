"""A pretrained backbone -> a start folder: what training starts from, and what serves at once."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline import files
from data_pipeline.progress import ProgressBar
from data_pipeline.protocol import IM_END, IM_START, AnswerForm
from data_pipeline.tokenizer import METADATA_FILE, SETTINGS_FILE, TEMPLATE_FILE
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.backbones.backbone import PretrainedBackbone
from msa_train.interop.backbones.folder import HuggingFaceFolder
from msa_train.interop.backbones.gguf_file import GGUFFile
from msa_train.interop.backbones.model_card import CARD, model_card
from msa_train.interop.backbones.vocabulary import VOCABULARY_WEIGHTS, ProtocolTokens, Vocabulary
from msa_train.interop.backbones.weights_file import Planned, write_weights
from msa_train.interop.export import CONFIG, WEIGHTS, seal
from msa_train.interop.published_config import to_published
from msa_train.model.architecture import GEOMETRY, whole_geometry
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.weights import router_from_backbone, weight_shapes

DTYPES = {
    "source": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class ImportSettings:
    """How a backbone is taken.

    router_layers: as RouterConfig.layers. protocol_tokens: what becomes of control tokens that the
    vocabulary lacks. dtype: of the weights, `source` as they are (quantised ones as float32).
    """

    router_layers: str = "upper_half"
    protocol_tokens: ProtocolTokens = "spell"
    dtype: str = "source"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}: give {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ImportReport:
    """What an import read and wrote.

    parameters: of the backbone. router_parameters: added. stored: how many weights lie in the
    source in which form; written: the same of the start folder. protocol_tokens: what became of
    control tokens that the vocabulary lacked.
    """

    target: str
    name: str
    licence: str | None
    architecture: str
    layers: int
    router_layers: tuple[int, ...]
    parameters: int
    router_parameters: int
    vocabulary: int
    rows: int
    rope_scaling: dict[str, Any] | None
    chat_template: bool
    stored: dict[str, int]
    written: dict[str, int]
    protocol_tokens: dict[str, str]
    bytes: int
    seconds: float
    fingerprint: dict[str, str]


def import_backbone(
    source: Path, target: Path, settings: ImportSettings | None = None
) -> ImportReport:
    """Read a folder or GGUF file and write a new start folder, whole or not at all.

    Raises CheckpointError for a source that is missing, broken, or asks for what is not computed,
    and where the target exists; DataError for a tokenizer that cannot be read.
    """
    began, settings = time.monotonic(), settings or ImportSettings()
    if target.exists():
        raise CheckpointError(f"{target} exists: remove it, or give another folder")
    conversion = _Conversion(source, settings)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as folder:
            folder.mkdir()
            size = conversion.write(folder)
            fingerprint = seal(folder)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    seconds = round(time.monotonic() - began, 2)
    return conversion.report(target, size, fingerprint, seconds)


def _opened(source: Path) -> PretrainedBackbone:
    if not source.exists():
        raise CheckpointError(f"{source} does not exist: give a Hugging Face folder or a GGUF file")
    return HuggingFaceFolder(source) if source.is_dir() else GGUFFile(source)


def _geometry(backbone: PretrainedBackbone) -> dict[str, Any]:
    """Fields of ModelConfig. Raises CheckpointError for sizes that are no numbers, or could not be
    those of its weights: a damaged file must not make a model of a billion layers."""
    found = whole_geometry(backbone.config)
    for key, field in GEOMETRY.items():
        kinds = (int, float) if field in ("rope_theta", "norm_eps") else (int,)
        if not isinstance(found[field], kinds):
            raise CheckpointError(f"config.json has {key} {found[field]!r}: it should be a number")
    if found["layers"] > len(backbone.stored):
        raise CheckpointError(
            f"config.json has num_hidden_layers {found['layers']}, but {backbone.name} has only "
            f"{len(backbone.stored)} weights"
        )
    return found


class _Conversion:
    """A backbone, and what becomes of it."""

    def __init__(self, source: Path, settings: ImportSettings):
        self._backbone = backbone = _opened(source)
        self._settings = settings
        router = RouterConfig(layers=settings.router_layers, gate="none")
        config = ModelConfig(**_geometry(backbone), router=router)
        backbone.check(self._backbone_shapes(config))
        tokenizer = HuggingFaceTokenizer.of(backbone.tokenizer, f"{METADATA_FILE} of {source}")
        self._vocabulary = Vocabulary.of(tokenizer, config.vocab_size, settings.protocol_tokens)
        self._config = replace(
            config, vocab_size=self._vocabulary.rows, answers=self._answers(tokenizer)
        )
        self._shapes = weight_shapes(self._config)

    def _answers(self, tokenizer: HuggingFaceTokenizer) -> AnswerForm:
        """The chat form for a backbone whose chat template is made of these turns."""
        template = self._backbone.chat_template or ""
        turns = (IM_START, IM_END)
        knows = all(token in template and token not in tokenizer.spelled for token in turns)
        return "chat" if knows else "protocol"

    @staticmethod
    def _backbone_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        shapes = weight_shapes(config)
        return {name: shape for name, shape in shapes.items() if ".router_" not in name}

    def write(self, folder: Path) -> int:
        """Everything but the fingerprint; bytes of the weights."""
        backbone, planned = self._backbone, self._planned()
        with ProgressBar(f"import {backbone.name}", "weights", len(planned)) as bar:
            size = write_weights(folder / WEIGHTS, planned, self._weights(bar))
        files.replace_file(folder / CONFIG, _text(to_published(self._config)))
        self._vocabulary.tokenizer.save(folder)
        files.replace_file(folder / SETTINGS_FILE, _text(backbone.settings))
        if backbone.chat_template is not None:
            files.replace_file(folder / TEMPLATE_FILE, backbone.chat_template)
        card = model_card(backbone, self._config, self._vocabulary.described())
        files.replace_file(folder / CARD, card)
        return size

    def report(
        self, target: Path, size: int, fingerprint: dict[str, str], seconds: float
    ) -> ImportReport:
        config, vocabulary, backbone = self._config, self._vocabulary, self._backbone
        own = sum(torch.Size(s).numel() for s in self._backbone_shapes(config).values())
        everything = sum(torch.Size(s).numel() for s in self._shapes.values())
        written = Counter(_name(dtype) for dtype, _ in self._planned().values())
        return ImportReport(
            target=str(target),
            name=backbone.name,
            licence=backbone.licence,
            architecture=config.architecture,
            layers=config.layers,
            router_layers=config.router_layers,
            parameters=own,
            router_parameters=everything - own,
            vocabulary=vocabulary.tokenizer.vocab_size,
            rows=vocabulary.rows,
            rope_scaling=None if config.rope_scaling is None else asdict(config.rope_scaling),
            chat_template=backbone.chat_template is not None,
            stored=dict(Counter(each.form for each in backbone.stored.values())),
            written=dict(written),
            protocol_tokens=vocabulary.described(),
            bytes=size,
            seconds=seconds,
            fingerprint=fingerprint,
        )

    def _planned(self) -> Planned:
        """In the order of the source's files, a layer's router after the key projection that it
        begins as."""
        planned = {}
        for name, stored in self._backbone.stored.items():
            dtype = DTYPES[self._settings.dtype] or stored.dtype
            for each in (name, *self._routers(name)):
                planned[each] = dtype, self._shapes[each]
        return planned

    def _weights(self, bar: ProgressBar) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._backbone.weights():
            if name in VOCABULARY_WEIGHTS:
                weight = self._vocabulary.with_rows(weight)
            weight = self._cast(name, weight)
            yield name, weight
            bar.advance(1)
            for router in self._routers(name):
                yield router, router_from_backbone(router, lambda _, key=weight: key, self._config)
                bar.advance(1)

    def _cast(self, name: str, weight: Tensor) -> Tensor:
        if not bool(weight.isfinite().all()):
            raise CheckpointError(f"{name} has numbers that are not finite: the source is damaged")
        dtype = DTYPES[self._settings.dtype] or weight.dtype
        cast = weight.to(dtype)
        if dtype is torch.float16 and not bool(cast.isfinite().all()):
            raise CheckpointError(
                f"{name} has numbers that float16 cannot hold: give another dtype"
            )
        return cast

    def _routers(self, name: str) -> list[str]:
        """Router weights that begin as the weight `name`."""
        if not name.endswith(".k_proj.weight"):
            return []
        sides = (name.replace("k_proj", f"router_{side}_proj.0") for side in "qk")
        return [router for router in sides if router in self._shapes]


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
