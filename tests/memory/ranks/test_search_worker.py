"""What a search worker answers, without its process: what a searcher of its share finds."""

import json
from dataclasses import asdict

import torch

from msa_train.errors import BankError
from msa_train.memory.ranks.search_worker import Holdings
from msa_train.memory.ranks.snapshot import described, pack
from msa_train.memory.search.loader import BankLoader, KeyChecks, Share
from msa_train.memory.search.settings import TierSettings
from tests.memory.ranks.banks import CONFIG, questions, write

LAYER, ROUTER = CONFIG.router_layers[0], CONFIG.router


def opening(bank, check):
    head = {
        "do": "open", "snapshot": 5, "router": asdict(ROUTER), "documents": len(bank.numbers),
        "check": check, "checkers": [0, 1, 3], **described(bank),
    }  # fmt: skip
    return json.loads(json.dumps(head)), {"live": pack(bank.live)}, None


def test_it_answers_for_its_share_alone(tmp_path):
    bank = write(tmp_path / "bank", [[1, 2, 3, 4], [2] * 6], removed=[2])
    share = Share(1, (1.0, 2.0))
    holdings = Holdings(share, TierSettings(), torch.device("cpu"))
    searcher = BankLoader(TierSettings(), share=share).searcher(bank, ROUTER)
    assert holdings.answer(*opening(bank, [])) == ({}, None)
    query, query_cu = questions()
    about = {"snapshot": 5, "layer": LAYER}
    allowed = torch.arange(len(bank.numbers)) % 3 > 0
    for only in (None, allowed):
        tensors = {"query_cu": query_cu} | ({} if only is None else {"allowed": pack(only)})
        best, _ = holdings.answer({"do": "best", "k": 3, **about}, tensors, query)
        expected = searcher.best(LAYER, query, query_cu, 3, only)
        assert torch.equal(best["places"], expected.places)
        assert torch.equal(best["scores"], expected.scores)
    tensors = {"query_cu": query_cu, "places": best["places"]}
    score, _ = holdings.answer({"do": "score", **about}, tensors, query)
    assert torch.equal(score["scores"], best["scores"])
    places = best["places"][best["places"] >= 0].unique()
    none, data = holdings.answer({"do": "states", **about}, {"places": places}, None)
    states = searcher.states(LAYER, places)
    raw = [x.contiguous().flatten().view(torch.uint8) for x in (states.k, states.v, states.key)]
    assert none == {} and torch.equal(data, torch.cat(raw))
    holdings.answer({"do": "drop", "snapshots": [5, 6]}, {}, None)
    assert not holdings._open


def test_every_file_of_keys_is_read_by_one_rank(tmp_path):
    bank = write(tmp_path / "bank", [[1, 2], [2] * 6, [3]])
    names = [segment.entry.name for segment in bank.segments]
    for segment in bank.segments:
        for layer in segment.form.layers:
            file = segment.folder / f"layer-{layer}.key"
            whole = file.read_bytes()
            file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
            for check in (names, [name for name in names if name != segment.entry.name]):
                found = [finds(bank, check, rank, file) for rank in (0, 1, 3)]
                assert sum(found) == (check is names)
            file.write_bytes(whole)


def finds(bank, check, rank, file):
    """Whether a rank refuses the file, when it opens the bank."""
    share = Share(rank, (1.0, 1.0, 0.0, 1.0))
    try:
        if rank == 0:
            checks = KeyChecks(tuple(check), 0, 3)
            BankLoader(TierSettings(), share=share).searcher(bank, ROUTER, checks)
        else:
            Holdings(share, TierSettings(), torch.device("cpu")).answer(*opening(bank, check))
    except BankError as error:
        assert str(file) in str(error)
        return True
    return False
