"""README.md of a folder with a backbone: what it was made of, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

import yaml

from msa_train.interop.backbones.backbone import FORMS, PretrainedBackbone
from msa_train.model.architecture import GEOMETRY
from msa_train.model.config import ModelConfig, RouterConfig

CARD = "README.md"

_BODY = """# {name}, with a memory

Made by msa-train of the {architecture} backbone *{name}* ({licence}), with routers of Memory Sparse
Attention (arXiv 2603.23516).

## What was converted

* {layer_count} layers, {tensors:,} tensors of the backbone, stored as {forms}{exact}.
* Positions: {positions}.
* Control tokens of the protocol: {protocol}.
* Chat template: {template}.

The licence of the backbone holds for these weights.
"""
_ROUTERS, _TRAINING = "## Routers", "## Training"
_USE = (
    _ROUTERS
    + """

In layers {layers}: {origin}.

`msa memory build BANK THIS_FOLDER CORPUS` at once; to train on, put this into a run's YAML and give
the folder as `--training.start_from THIS_FOLDER --data.tokenizer.path THIS_FOLDER`{reads}:

```yaml
{settings}```
"""
)
_UNREAD = (
    ".\nWith `reads: none` routers only find documents: name layers there, to train on what they\n"
    "find, too"
)
_COPIED = (
    "copies of their layer's key projection. Nothing is trained yet, and without a memory\n"
    "the model computes what the backbone does"
)
_TRAINED = "trained with the rest of the model"
_OWN = "of a shape of their own, made by `msa router` with the backbone as it was"


def model_card(
    backbone: PretrainedBackbone, config: ModelConfig, protocol: Mapping[str, str]
) -> str:
    """protocol: control tokens that the vocabulary lacked -> what became of them."""
    forms = Counter(each.form for each in backbone.stored.values())
    quantised = any(form not in FORMS for form in forms)
    scaling = config.rope_scaling
    body = _BODY.format(
        name=backbone.name,
        architecture=config.architecture,
        licence=f"licence: {backbone.licence}" if backbone.licence else "licence not stated",
        layer_count=config.layers,
        tensors=len(backbone.stored),
        forms=", ".join(f"{form} ({count})" for form, count in forms.items()),
        exact="; quantised ones as the numbers they stand for" if quantised else "",
        positions="plain rotation" if scaling is None else str(scaling.to_published()),
        protocol="; ".join(f"`{token}` {what}" for token, what in protocol.items())
        or "all in the vocabulary",
        template="kept in chat_template.jinja" if backbone.chat_template else "none",
    )
    matter = {"base_model": backbone.name, "library_name": "msa-train"}
    if backbone.licence:
        matter["license"] = backbone.licence
    front = f"---\n{yaml.safe_dump(matter, allow_unicode=True)}---\n\n"
    return f"{front}{body}\n{_use(config, _COPIED)}"


def rerouted(card: str, config: ModelConfig) -> str:
    """The card of a folder whose routers were replaced: what it was made of, and the new ones."""
    return card.partition(_ROUTERS)[0] + _use(config, _OWN)


def trained(card: str, config: ModelConfig, checkpoint: str) -> str:
    """The card of an export of `checkpoint`, whose run started from a folder with `card`."""
    made = card.partition(_ROUTERS)[0].partition(_TRAINING)[0]
    training = f"{_TRAINING}\n\nTo {checkpoint}, with the settings in run.yaml.\n\n"
    return made + training + _use(config, _TRAINED)


def _use(config: ModelConfig, origin: str) -> str:
    layers = ", ".join(map(str, config.router_layers))
    reads = _UNREAD if config.router.reads == "none" else ""
    return _USE.format(layers=layers, origin=origin, settings=_settings(config), reads=reads)


def _settings(config: ModelConfig) -> str:
    """`model` of a run's YAML that this folder fits."""
    model = {name: getattr(config, name) for name in ("architecture", *GEOMETRY.values())}
    if config.rope_scaling is not None:
        model["rope_scaling"] = config.rope_scaling.to_published()
    if config.answers != ModelConfig.answers:
        model["answers"] = config.answers
    # A gate is the run's choice: it adds its own weights.
    kept = [field.name for field in fields(RouterConfig) if field.name not in ("layers", "gate")]
    changed = {
        name: value
        for name in kept
        if (value := getattr(config.router, name)) != getattr(RouterConfig, name)
    }
    model["router"] = {"layers": ",".join(map(str, config.router_layers)), **changed}
    return yaml.safe_dump({"model": model}, sort_keys=False)
