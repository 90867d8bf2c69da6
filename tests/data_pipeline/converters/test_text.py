from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, passages, write


def test_files_of_a_folder(tmp_path):
    folder = tmp_path / "texts"
    write(folder / "b.txt", "# no heading in plain text\n")
    write(folder / "a" / "z.md", "Intro\n```\n# code\n```\n## The *title* ##\n# Later\n")
    write(folder / "a" / "no heading.MD", "#hashtag only")
    write(folder / "empty.md", " \n")
    write(folder / "code.py", "# not taken")
    converted = convert("text", [folder], tmp_path / "out")
    assert (converted.passages, converted.questions) == (3, {})
    assert converted.left_out == {"empty files": 1}
    assert passages(tmp_path / "out") == {
        "a/no heading.MD": ("no heading", "#hashtag only"),
        "a/z.md": ("The *title*", "Intro\n```\n# code\n```\n## The *title* ##\n# Later"),
        "b.txt": ("b", "# no heading in plain text"),
    }


def test_broken(tmp_path):
    folder = tmp_path / "texts"
    write(folder / "a.txt", "one\n")
    (folder / "b.txt").write_bytes(b"one\ntwo\n\xff\n")
    fails(tmp_path, "text", [folder], f"{folder / 'b.txt'}, line 3: not UTF-8")
    fails(tmp_path, "text", [folder / "a.txt"], "a.txt is no folder: give one")
    fails(tmp_path, "text", [folder], "plain texts have no questions", splits=["dev"])
    empty = write(tmp_path / "empty" / "a.txt", "").parent
    fails(tmp_path, "text", [empty], "the input holds no passage")
