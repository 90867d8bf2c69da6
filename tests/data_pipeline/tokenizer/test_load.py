import pytest

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

TEXTS = [f"[{i}]. the word {i} and\nanother  word.\tEnd" for i in range(300)]
TOKENIZER = train_sentencepiece(TEXTS, 310)


def test_what_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(DataError, match="fingerprint"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "wordpiece"}')
    with pytest.raises(DataError, match="'wordpiece'"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_tokenizer(tmp_path)
