"""One rank alone agrees with itself; tests/training/test_saving.py has two, one of them late."""

from msa_train.training.meeting import Meeting


def test_one_rank_agrees_with_itself(megatron):
    meeting = Meeting("alone", "a test", timeout_s=1)
    assert meeting.all("a") == ["a"] and meeting.of_rank_0(lambda: 7) == 7
