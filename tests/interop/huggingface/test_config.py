"""config.json as transformers reads it, and back."""

import pytest
from transformers import AutoConfig

from msa_train.errors import CheckpointError
from msa_train.interop.export import check_export
from msa_train.interop.huggingface.config import MSAConfig
from tests.interop.backbones.models import CASES
from tests.interop.huggingface.folders import imported, trained_here


@pytest.mark.parametrize("case", [*CASES, "trained here"])
def test_a_folders_config_is_its_decoders(case, tmp_path):
    folder = trained_here() if case == "trained here" else imported(case)[1]
    config = AutoConfig.from_pretrained(folder)
    expected, _ = check_export(folder)
    assert config.decoder_config == expected
    assert (config.hidden_size, config.vocab_size) == (expected.hidden, expected.vocab_size)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).decoder_config == expected


def test_a_changed_config_is_refused_by_name():
    config = AutoConfig.from_pretrained(trained_here(), sliding_window=64)
    with pytest.raises(CheckpointError, match="sliding_window 64"):
        _ = config.decoder_config
    with pytest.raises(CheckpointError, match="no 'msa_config'"):
        _ = MSAConfig().decoder_config
