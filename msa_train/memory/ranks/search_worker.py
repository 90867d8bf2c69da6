"""A search worker: holds its share of every snapshot's documents and answers its driver."""

from __future__ import annotations

import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa_train.errors import MSAError
from msa_train.memory.ranks.channel import Channel, Packet
from msa_train.memory.ranks.exchange import Exchange, as_bytes
from msa_train.memory.ranks.snapshot import OpenedSegments, opened, unpack
from msa_train.memory.ranks.worker_process import (
    end_with_driver,
    run_worker,
    told_error,
    warm_up,
)
from msa_train.memory.search.loader import BankLoader, KeyChecks, Share
from msa_train.memory.search.searcher import LocalSearcher
from msa_train.memory.search.settings import TierSettings
from msa_train.model.config import RouterConfig

Reply = tuple[dict[str, Tensor], Tensor | None]  # tensors, and what follows through the exchange


class Holdings:
    """The snapshots that this rank has open."""

    def __init__(self, share: Share, settings: TierSettings, device: torch.device):
        self._rank, self._loader = share.rank, BankLoader(settings, device, share)
        self._open: dict[int, tuple[OpenedSegments, LocalSearcher]] = {}

    def answer(self, head: dict[str, Any], tensors: dict[str, Tensor], query: Tensor) -> Reply:
        """What the method that `do` names answers."""
        return getattr(self, head["do"])(head, tensors, query)

    def open(self, head: dict[str, Any], tensors: dict[str, Tensor], _: Tensor) -> Reply:
        router = RouterConfig(**head["router"])
        known = (segment for held, _ in self._open.values() for segment in held.segments)
        held = opened(head, unpack(tensors["live"], head["documents"]), known)
        place, count = head["checkers"].index(self._rank), len(head["checkers"])
        checks = KeyChecks(tuple(head["check"]), place, count)
        self._open[head["snapshot"]] = held, self._loader.searcher(held, router, checks)
        return {}, None

    def drop(self, head: dict[str, Any], *_: Any) -> Reply:
        for number in head["snapshots"]:
            self._open.pop(number, None)
        return {}, None

    def best(self, head: dict[str, Any], tensors: dict[str, Tensor], query: Tensor) -> Reply:
        held, searcher = self._open[head["snapshot"]]
        allowed = tensors.get("allowed")
        allowed = None if allowed is None else unpack(allowed, len(held.live))
        cu = tensors["query_cu"].to(query.device)
        found = searcher.best(head["layer"], query, cu, head["k"], allowed)
        return {"places": found.places, "scores": found.scores}, None

    def score(self, head: dict[str, Any], tensors: dict[str, Tensor], query: Tensor) -> Reply:
        _, searcher = self._open[head["snapshot"]]
        cu = tensors["query_cu"].to(query.device)
        return {"scores": searcher.score(head["layer"], query, cu, tensors["places"])}, None

    def states(self, head: dict[str, Any], tensors: dict[str, Tensor], _: Tensor) -> Reply:
        _, searcher = self._open[head["snapshot"]]
        states = searcher.states(head["layer"], tensors["places"])
        return {}, torch.cat([as_bytes(x) for x in (states.k, states.v, states.key)])


def work(channel: Channel) -> None:
    """Starts as the first message says, and answers. Ends by Closed, or by an error that is not a
    user's to repair."""
    told = channel.receive(None).head
    file = Path(told["file"])

    def clean_up() -> None:
        shutil.rmtree(file.parent, ignore_errors=True)

    end_with_driver(channel, clean_up)
    device = torch.device(told["device"], told["rank"] if told["device"] == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(told["threads"])
    share = Share(told["rank"], tuple(told["shares"]))
    holdings = Holdings(share, TierSettings(**told["tiers"]), device)
    warm_up(device)
    channel.send({"number": 0}, {}, None)
    try:
        channel.receive(None)
        timeout_s = told["timeout_s"]
        exchange = Exchange(file, told["rank"], told["count"], device, timeout_s)
        channel.send({"number": 0}, {}, None)
        with torch.inference_mode():
            while True:
                _serve(channel.receive(None), channel, exchange, holdings, timeout_s)
    finally:
        clean_up()


def _serve(
    message: Packet, channel: Channel, exchange: Exchange, holdings: Holdings, timeout_s: float
) -> None:
    head, data = {"number": message.head["number"]}, None
    tensors: dict[str, Tensor] = {}
    try:
        query = _query(message.head, exchange, timeout_s)
        tensors, data = holdings.answer(message.head, message.tensors, query)
    except MSAError as error:
        head["error"] = told_error(error)
    except BaseException:
        channel.send({**head, "crash": traceback.format_exc()}, {}, None)
        raise
    channel.send(head, tensors, None)
    if data is not None:
        exchange.send(data, 0)(time.monotonic() + timeout_s)


def _query(head: dict[str, Any], exchange: Exchange, timeout_s: float) -> Tensor | None:
    if "query" not in head:
        return None
    kind, shape = head["query"]
    dtype, size = getattr(torch, kind), torch.Size(shape)
    deadline = time.monotonic() + timeout_s
    data = exchange.receive(size.numel() * dtype.itemsize, 0, deadline)
    return data.view(dtype).view(size)


if __name__ == "__main__":
    run_worker(work)
