"""docs/results/gpu.md, from what the battery measured: a table for each part, nothing left out.

What has no number on a GPU says so. Numbers of toy sizes are never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from data_pipeline.files import replace_file
from msa_train.bench.gpu.parts import PARTS
from msa_train.bench.gpu.results import DONE, PartResult, Provenance, Results, Row
from msa_train.bench.gpu.sizes import FULL

UNMEASURED = "unmeasured"
_HEAD = """# On a GPU

`make gpu` measures all of this in one sitting of 25 minutes on one card, and writes this page. How
to run it, and what each part is for: [gpu.md](../gpu.md). **{state}**

Floor: what nothing can beat on that card, as measured beside it (a plain read of 2 GB, a plain
product of large matrices); of errors what is allowed, of memory what was predicted. Share: of the
floor that is reached, 1 at best; of errors and memory, how much of it is taken.
"""
_COLUMNS = ("what", "measured", "floor", "share", "note")


def page(results: Results) -> str:
    """The page of some results; of none, every row is unmeasured."""
    measured = {} if results.toy else results.parts
    text = [_HEAD.format(state=_state(measured))]
    for name, part in PARTS.items():
        found = measured.get(name)
        text.append(f"## {part.title}\n")
        text += _place(found)
        planned = [Row(what, unit) for what, unit in part.planned(FULL)]
        text.append(table(_COLUMNS, [_cells(row) for row in _all(planned, found)]))
        text += _details(found)
    return "\n".join(text)


def write_page(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page(results))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with an empty line behind it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _state(parts: dict[str, PartResult]) -> str:
    cards = sorted({row.card for part in parts.values() for row in part.rows if row.card})
    if not cards:
        return "No GPU has run it yet: every row is unmeasured."
    return f"Measured on {', '.join(cards)}."


def _place(found: PartResult | None) -> Iterator[str]:
    if found is None:
        return
    places = {Provenance(row.card, row.driver, row.torch, row.triton) for row in found.rows}
    for card, driver, torch, triton in sorted(map(astuple, places)):
        yield (f"{card}, driver {driver}, torch {torch}, Triton {triton}; {found.seconds:.0f} s.\n")
    if found.state != DONE:
        yield f"It did not end: {found.state}. What it had not measured is {UNMEASURED}.\n"


def _all(planned: list[Row], found: PartResult | None) -> list[Row]:
    """Planned rows with what was found of them, then those that were found beside."""
    there = {row.what: row for row in found.rows} if found else {}
    rows = [there.pop(row.what, row) for row in planned]
    return [*rows, *there.values()]


def _cells(row: Row) -> list[str]:
    what = row.what.replace("|", "/")
    if row.value is None:
        said = "could not be measured" if row.failed else UNMEASURED
        return [what, said, "", "", row.failed.replace("|", "/")]
    floor = "" if row.floor is None else f"{_number(row.floor)} {row.unit}"
    share = "" if row.ratio is None else f"{row.ratio:.3g}"
    return [what, f"{_number(row.value)} {row.unit}", floor, share, row.note.replace("|", "/")]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _details(found: PartResult | None) -> Iterator[str]:
    for row in found.rows if found else ():
        if row.detail:
            shown = [(name.replace("|", "/"), f"{ms:.3g}") for name, ms in row.detail]
            yield table((row.what, row.unit), shown)
