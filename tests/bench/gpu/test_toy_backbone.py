"""A toy that the commands of part `backbone` take as they take the real one."""

import pytest

from data_pipeline.dataset import find_file, read_passages, read_questions
from msa_train.bench.gpu.toy_backbone import toy_backbone, toy_corpus
from msa_train.interop.export import load_export
from msa_train.router.fit import check_pooled


@pytest.mark.slow
def test_a_model_whose_router_is_pooled_and_documents_with_questions_held_out(tmp_path):
    backbone = toy_backbone(tmp_path / "backbone")
    loaded = load_export(backbone)
    assert loaded.model.config.answers == "chat"
    assert not loaded.model.config.reading_layers
    check_pooled(loaded.model.config, "the toy")
    corpus = toy_corpus(backbone, tmp_path / "corpus")
    passages = {each.id for each in read_passages(find_file(corpus, "corpus"))}
    questions = [each for _, each in read_questions(find_file(corpus, "questions.held_out"))]
    asked = {id for each in questions for id in each.positives}
    assert asked < passages and len(asked) == len(passages) // 8
