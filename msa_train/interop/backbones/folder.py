"""A backbone as Hugging Face's folders hold it: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import METADATA_FILE, SETTINGS_FILE, TEMPLATE_FILE
from msa_train.errors import CheckpointError
from msa_train.interop.backbones.backbone import FORMS, PretrainedBackbone, StoredWeight

INDEX = "model.safetensors.index.json"
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")  # older files hold the frequencies as well


class HuggingFaceFolder(PretrainedBackbone):
    """A folder as `save_pretrained` leaves it, its weights in one file or in several.

    Raises CheckpointError for a file that is missing or broken.
    """

    def __init__(self, folder: Path):
        self._folder, self.name = folder, folder.resolve().name
        self.config = _json(folder / "config.json")
        tied = self.config.get("tie_word_embeddings")
        self._files: dict[Path, list[str]] = {}
        self.stored = {}
        for path in _weight_files(folder):
            found = _contents(path)
            if tied:
                found.pop("lm_head.weight", None)
            for name in found.keys() & self.stored.keys():
                other = next(file for file, names in self._files.items() if name in names)
                raise CheckpointError(
                    f"{other} and {path} both hold {name}: leave one of them, or add the "
                    f"{INDEX} that says which is read"
                )
            self._files[path] = list(found)
            self.stored |= found
        self._check_index()
        self.licence = _licence(folder / "README.md")
        try:
            self.tokenizer = (folder / METADATA_FILE).read_bytes()
        except OSError as error:
            raise DataError(
                f"no tokenizer in {folder}: {METADATA_FILE} is missing (a SentencePiece "
                "tokenizer.model alone is not supported)"
            ) from error
        self.settings = _json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
        self.chat_template = self._template()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for path, names in self._files.items():  # one open at a time: what is mapped counts as ours
            with _opened(path) as file:
                for name in names:
                    yield name, file.get_tensor(name)

    def _check_index(self) -> None:
        if not (self._folder / INDEX).is_file():
            return
        listed = _index(self._folder)
        gone = [n for n, file in listed.items() if n not in self._files[self._folder / file]]
        gone = [name for name in gone if name in self.stored or not _ignored(name, self.config)]
        if gone:
            raise CheckpointError(
                f"{self._folder / listed[gone[0]]} has no weight {gone[0]}, which {INDEX} says is "
                "in it: is it a file of another model?"
            )

    def _template(self) -> str | None:
        if (self._folder / TEMPLATE_FILE).is_file():
            return (self._folder / TEMPLATE_FILE).read_text()
        found = self.settings.get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {each["name"]: each["template"] for each in found}.get("default")
        return found


def _ignored(name: str, config: Mapping[str, Any]) -> bool:
    tied_head = name == "lm_head.weight" and config.get("tie_word_embeddings")
    return bool(tied_head or _DERIVED.fullmatch(name))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): give a folder with config.json, safetensors and "
            "tokenizer.json, or a GGUF file"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is a JSON {type(found).__name__}, not an object")
    return found


def _index(folder: Path) -> dict[str, str]:
    listed = _json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{folder / INDEX} has no weight_map: download it again")
    return listed


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names, or all that are there."""
    if not (folder / INDEX).is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(
                f"{folder} holds no *.safetensors: weights in other files (pytorch_model.bin) are "
                "not read; save it again with safetensors"
            )
        return found
    found = [folder / name for name in sorted(set(_index(folder).values()))]
    for path in found:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which {INDEX} names: download it again")
    return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is cut off, or no safetensors file"
        ) from error


def _contents(path: Path) -> dict[str, StoredWeight]:
    found = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            if _DERIVED.fullmatch(name):
                continue
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in FORMS:
                raise CheckpointError(
                    f"{path} has {name} in {kind}: supported are {', '.join(FORMS)}"
                )
            found[name] = StoredWeight(tuple(part.get_shape()), FORMS[kind], kind)
    return found


def _licence(card: Path) -> str | None:
    """As a model card's front matter names it."""
    if not card.is_file() or not (matter := _FRONT_MATTER.match(card.read_text(errors="replace"))):
        return None
    try:
        return dict(yaml.safe_load(matter[1])).get("license")
    except (yaml.YAMLError, TypeError, ValueError):
        return None
