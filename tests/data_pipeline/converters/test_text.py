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


def test_the_heading_that_a_text_begins_with_is_its_title_alone(tmp_path):
    folder = tmp_path / "texts"
    write(folder / "a.md", "\n# Cats #\r\n\r\nCats purr.\r\n# Cats\n")
    write(folder / "b.md", "# Only this\n")
    write(folder / "c.md", "    # code\n# Title\n")
    convert("text", [folder], tmp_path / "out")
    assert passages(tmp_path / "out") == {
        "a.md": ("Cats", "Cats purr.\r\n# Cats"),
        "b.md": ("", "Only this"),
        "c.md": ("Title", "# code\n# Title"),
    }


def test_hidden_files_and_folders_are_counted_and_not_read(tmp_path):
    folder = tmp_path / ".texts"
    write(folder / "a.md", "shown")
    write(folder / ".git" / "b.md", "hidden")
    write(folder / "in" / ".c.txt", "hidden too")
    converted = convert("text", [folder], tmp_path / "out")
    assert list(passages(tmp_path / "out")) == ["a.md"]
    assert converted.left_out == {"hidden folders": 1, "hidden files": 1}


def test_folders_with_equal_names_are_joined(tmp_path):
    a, b = (write(tmp_path / name / "docs" / "x.md", name).parent for name in "ab")
    convert("text", [a, b], tmp_path / "out")
    assert passages(tmp_path / "out") == {
        "a/docs/x.md": ("x", "a"),
        "b/docs/x.md": ("x", "b"),
    }
    inside = convert("text", [tmp_path / "a", a], tmp_path / "again")
    assert list(passages(tmp_path / "again")) == ["docs/x.md"]
    assert inside.repeated_passages == 1


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    folder = write(tmp_path / "texts" / "a.md", "A text.").parent
    write(folder / "caf\udce9.md", "Another.")
    fails(tmp_path, "text", [folder], r"caf\udce9.md': the name is not UTF-8: rename the file")
