"""What hotpotqa and 2wiki share: titled paragraphs, and facts that name some of them."""

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, write_json
from tests.data_pipeline.converters.test_hotpotqa import BRIDGE, COMPARISON


def test_retrieved_contexts_may_lack_the_supporting_paragraphs(tmp_path):
    lacking = {**BRIDGE, "context": BRIDGE["context"][:2]}
    path = write_json(tmp_path / "a.json", [lacking, COMPARISON | {"context": BRIDGE["context"]}])
    converted = convert("hotpotqa", [path], tmp_path / "out", ["dev"])
    assert converted.questions == {"dev": 1}
    assert converted.left_out == {
        "questions whose supporting paragraphs are not in their context": 1
    }


def test_both_formats_name_a_broken_paragraph(tmp_path):
    broken = BRIDGE | {"context": [["Jo Ray", ["One."]], ["Noise", [1]]]}
    path = write_json(tmp_path / "a.json", [broken])
    for format in ("hotpotqa", "2wiki"):
        fails(tmp_path, format, [path], f'{path}, [0]: "context[1]" is wrong: give [title, [')
