"""Attention beside peers, on the same tensors."""

from tests.bench.gpu.toy import toy_rows


def test_ours_and_every_peer_that_runs_here(monkeypatch):
    found, planned = toy_rows("attention", monkeypatch)
    ours = [what for what in planned if ":" not in what]
    assert len(ours) == 3 and all(found[what].value > 0 for what in ours)
    beside = {what.partition(": ")[2] for what in found} - {""}
    assert {"sdpa, gathered", "sdpa, equal lengths"} <= beside
    assert all(found[what].floor == found[what.partition(":")[0]].floor for what in found)
