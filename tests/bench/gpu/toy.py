"""A part at toy size in this process, and what its rows must be."""

from msa_train.bench.floor import Floor
from msa_train.bench.gpu.parts import PARTS, Work
from msa_train.bench.gpu.sizes import TOY

FLOOR = Floor(bytes_per_ms=1e6, flops_per_ms=1e6)


def toy_rows(name, monkeypatch, sizes=TOY):
    """Rows by name; every planned one is there, with a number."""
    monkeypatch.setattr(Floor, "measured", lambda dtype: FLOOR)
    found = {row.what: row for row in PARTS[name].run(Work(sizes, 60.0))}
    assert [*found.items()], "no rows"
    assert not [row for row in found.values() if row.failed]
    planned = dict(PARTS[name].planned(sizes))
    assert {what: row.unit for what, row in found.items()}.items() <= planned.items()
    return found, planned
