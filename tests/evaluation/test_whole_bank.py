from data_pipeline.sources.base import SourceInputs
from data_pipeline.sources.datasets import DatasetSource
from msa_train.evaluation.report import tables
from msa_train.evaluation.whole_bank import whole_bank_section


def test_every_held_out_question_is_asked_beside_bm25_and_a_random_router(
    asker, tokenizer, config, verbs, tmp_path
):
    inputs = SourceInputs("verbs", tokenizer, config.data.numbers, tmp_path)
    held_out = DatasetSource.held_out_bank(verbs, inputs, config.evaluation)
    section = whole_bank_section("verbs", held_out, asker, config.evaluation, 1)
    assert section["questions"] == 10 and section["documents"] == 30
    # Three equal documents each, of which only one counts: word search finds all three.
    assert section["bm25_recall@5"] == 1 and 0 < section["bm25_recall@1"] < 1
    for k in (1, 5, 16):
        assert section["n"][f"recall@{k}"] == section["n"][f"random_recall@{k}"] == 10
        assert section[f"any_found@{k}"] == section[f"recall@{k}"], "one positive each"
    assert "answer_text" not in section
    assert "verbs: 10 held-out questions" in _printed({"datasets": {"verbs": section}})


def _printed(report):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables(report))
    return console.export_text()
