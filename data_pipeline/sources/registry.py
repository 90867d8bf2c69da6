"""Every source there is, by name: importing this module imports all modules of the folder."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from data_pipeline import sources
from data_pipeline.sources.base import REGISTERED, Source

_FIRST = ("niah", "pydocs")  # shards and tokenizers depend on the order: new sources come after


def _find_all() -> dict[str, type[Source]]:
    for module in iter_modules(sources.__path__):
        import_module(f"{sources.__name__}.{module.name}")
    return {name: REGISTERED[name] for name in (*_FIRST, *sorted({*REGISTERED} - {*_FIRST}))}


SOURCES = _find_all()
