from msa_train.evaluation.asking import Asker
from msa_train.evaluation.mining import mine
from tests.evaluation.conftest import VERBS


def test_mined_negatives_are_near_and_wrong(model, tokenizer, verbs, tmp_path):
    found = dict(mine(Asker(model, tokenizer, 4), verbs, tokenizer, tmp_path, count=3))
    assert sorted(found) == sorted(f"train-{w}" for w in VERBS)
    for id, negatives in found.items():
        word = id.removeprefix("train-")
        assert len(negatives) == 3 == len(set(negatives))
        assert not any(n.startswith(word) for n in negatives), "its twins hold the answer"
