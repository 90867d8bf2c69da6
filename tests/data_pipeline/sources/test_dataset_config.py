import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.dataset_config import DatasetConfig, NegativesConfig


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DatasetConfig("x", tasks={"guess": 1.0}), "'guess'"),
        (lambda: DatasetConfig("x", tasks={"given": -1.0}), r"tasks\.given is -1"),
        (lambda: DatasetConfig("x", tasks={"given": 0.0}), "make one positive"),
        (lambda: DatasetConfig("x", questions=0), "questions is 0"),
        (lambda: DatasetConfig("x", made_held_out_share=1.0), "made_held_out_share is 1"),
        (lambda: DatasetConfig("x", document_tokens=8), "document_tokens is 8"),
        (lambda: NegativesConfig(count=-1), r"negatives\.count is -1"),
        (lambda: DatasetConfig("x", split=""), "split is ''"),
        (lambda: NegativesConfig(bm25=-1), r"negatives\.bm25 is -1"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_only_tasks_that_hold_something_out_are_held_out():
    config = DatasetConfig("x", tasks={"given": 2.0, "title": 1.0, "text": 0.0})
    assert config.held_out().tasks == {"title": 1.0}, "no split of questions is held out"
    asked = DatasetConfig("x", tasks=config.tasks, held_out_split="dev", made_held_out_share=0)
    assert asked.held_out().tasks == {"given": 2.0}
    assert DatasetConfig("x").held_out() is None
