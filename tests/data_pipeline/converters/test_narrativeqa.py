import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, passages, questions, write

DOCUMENTS = """\
document_id,set,kind,story_url,story_file_size,wiki_url,wiki_title,story_word_count,story_start,story_end
0025,train,movie,http://a,1,http://b,Madness,10,a,b
00fb,train,gutenberg,http://a,1,http://b,"Ion, a dialogue",10,a,b
0ab1,test,gutenberg,http://a,1,http://b,Other,10,a,b
"""
SUMMARIES = """\
document_id,set,summary,summary_tokenized
0025,train,"He said ""mad"".

Then left.",x
0ab1,test,Another one.,x
"""
QAPS = """\
document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,answer2_tokenized
0025,train,"Who left,
and why?",He,The man,x,x,x
0025,train,When?,Then,Then,x,x,x
00fb,train,Who?,Ion,Ion,x,x,x
0ab1,test,Which?,another,one,x,x,x
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "narrativeqa"
    write(folder / "documents.csv", DOCUMENTS)
    write(folder / "third_party" / "wikipedia" / "summaries.csv", SUMMARIES)
    write(folder / "qaps.csv", QAPS)
    return folder


def test_summaries_and_the_questions_of_a_set(tmp_path, folder):
    converted = convert("narrativeqa", [folder], tmp_path / "out")
    assert (converted.passages, converted.questions) == (1, {"train": 2})
    assert converted.left_out == {
        "documents without a summary": 1,
        "questions about a document that was left out": 1,
    }
    text = 'He said "mad".\n\nThen left.'
    assert passages(tmp_path / "out") == {"0025": ("Madness", text)}
    assert questions(tmp_path / "out") == [
        Question("0025-0", "Who left,\nand why?", ("He", "The man"), ("0025",)),
        Question("0025-1", "When?", ("Then",), ("0025",)),
    ]
    both = convert("narrativeqa", [folder], tmp_path / "both", ["train", "test"])
    assert (both.passages, both.questions) == (2, {"train": 2, "test": 1})


def test_stories(tmp_path, folder):
    write(folder / "tmp" / "0025.content", "The whole\nstory.")
    (folder / "tmp" / "00fb.content").write_bytes(b"caf\xe9")
    write(folder / "tmp" / "0ab1.content", "")
    converted = convert("narrativeqa", [folder], tmp_path / "a", ["train", "test"], stories=True)
    assert converted.left_out == {
        "documents without a story": 1,
        "questions about a document that was left out": 1,
    }
    assert passages(tmp_path / "a") == {
        "0025": ("Madness", "The whole\nstory."),
        "00fb": ("Ion, a dialogue", "café"),
    }


def test_broken(tmp_path, folder):
    qaps = folder / "qaps.csv"
    for text, said in (
        (QAPS + "0ab2,train,Who?,a,b,x,x,x\n", "line 7: documents.csv has no '0ab2' in train"),
        (QAPS + "0025,train,Who?\n", "line 7: has 3 cells, and the header 8: give as many"),
        (QAPS.replace("answer2,", "", 1), "line 1: the header has no column answer2"),
        (QAPS + '0025,train,"Who?\n', "line 7: not CSV: unexpected end of data"),
    ):
        write(qaps, text)
        fails(tmp_path, "narrativeqa", [folder], f"{qaps}, {said}")
    fails(
        tmp_path, "narrativeqa", [folder], "no document is of the set dev", "one of test, train",
        splits=["dev"],
    )  # fmt: skip
    documents = write(folder / "documents.csv", DOCUMENTS + DOCUMENTS.splitlines()[1] + "\n")
    fails(tmp_path, "narrativeqa", [folder], f"{documents}, line 5: ", f"{documents}, line 2: ")
    documents.unlink()
    fails(tmp_path, "narrativeqa", [folder], f"{documents} cannot be read")
    fails(tmp_path, "narrativeqa", [qaps], "give one folder with documents.csv")
