"""Changes of a small bank, and what must be true of it whatever becomes of them."""

import functools
import os
from dataclasses import dataclass

from msa_train.memory.bank.encode import BlockSize, encode_documents
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter
from tests.memory.building import build, document
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer

MUTATIONS = ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "mkdir", "unlink", "rmdir")
KILLED = 99


@functools.cache
def encoded(first, count, text=None):
    documents = [document(number, text) for number in range(first, first + count)]
    return list(encode_documents(tiny_model(), tiny_tokenizer(), documents, 60))


def texts(path):
    """{number: text} of the bank's documents."""
    return {each.number: each.text for each in BankSnapshot.open(path, FINGERPRINT)}


@dataclass(frozen=True)
class Change:
    """run(path) changes a bank; after(texts before) is what it holds then."""

    name: str
    run: object
    after: object


def add(path):
    with BankWriter(path, "add", segment_documents=4) as writer:
        writer.add(encoded(writer.manifest.next_number, 6))


def update(path):
    with BankWriter(path, "update") as writer:
        number = writer.manifest.next_number
        writer.add(encoded(number, 2, "Changed."), replaced=[0, 4])


def remove(path):
    with BankWriter(path, "remove") as writer:
        writer.remove([1, 2, 8])


def compact(path):
    with BankWriter(path, "compact") as writer:
        writer.compact()


def _added(before):
    first = max(before) + 1
    return before | {n: document(n).text for n in range(first, first + 6)}


def _updated(before):
    first = max(before) + 1
    kept = {n: text for n, text in before.items() if n not in (0, 4)}
    return kept | {first: "Changed.", first + 1: "Changed."}


CHANGES = {
    "add": Change("add", add, _added),
    "update": Change("update", update, _updated),
    "remove": Change(
        "remove", remove, lambda b: {n: t for n, t in b.items() if n not in (1, 2, 8)}
    ),
    "compact": Change("compact", compact, dict),
}


def prepared(path):
    """A bank of two segments and removed documents."""
    build(path, size=BlockSize())
    with BankWriter(path, "add") as writer:
        writer.add(encoded(9, 5))
        writer.remove([3, 10])
    return path


class Fault:
    """Stands in for `os` where banks are written; its `at`-th change fails."""

    def __init__(self, at, act, lasting=False):
        self.at, self.act, self.lasting, self.calls = at, act, lasting, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in MUTATIONS:
            return real

        def change(*given, **named):
            self.calls += 1
            if self.calls == self.at or (self.lasting and self.calls > self.at):
                self.act(name, real, given)
            return real(*given, **named)

        return change


def die(name, real, given):
    """The process ends; a write may have begun."""
    if name == "write":
        real(given[0], given[1][: len(given[1]) // 2])
    os._exit(KILLED)


def forked(work):
    """Process id of a child, forked from this warm process, that does `work`."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def in_child(work):
    """Exit status of a forked process that does `work`."""
    child = forked(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check(path, allowed):
    """The bank is whole and holds one of the states; returns it."""
    report = verify_bank(path)
    assert not report["problems"], report["problems"]
    found = texts(path)
    assert found in allowed
    return found
