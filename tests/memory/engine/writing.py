"""What a model writes, chosen by a test."""

from msa_train.memory.engine.sequence import Sequence


def writes(monkeypatch, choose) -> None:
    """Each sequence writes choose(sequence, token) in place of the model's token."""
    append = Sequence.append
    monkeypatch.setattr(
        Sequence, "append", lambda self, token, room: append(self, choose(self, token), room)
    )
