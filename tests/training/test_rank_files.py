"""Copies are what torch.save would have written, whatever happens to the originals."""

import hashlib

import torch
from safetensors.torch import load_file

from msa_train.training.rank_files import RankFiles


def test_copies_are_written_later_as_they_were(tmp_path):
    flat = torch.arange(6.0)
    state = {"whole": flat, "part": flat[2:4], "list": [flat, 3], "text": "a"}
    digests = []
    for beside in (False, True):
        folder = tmp_path / str(beside)
        folder.mkdir()
        written = RankFiles(folder, beside)
        written.add_state(state, folder / "state.pt")
        written.add_weights({"w": torch.ones(2, 3)}, folder / "w.safetensors")
        if beside:
            assert not list(folder.iterdir())
            flat.zero_()
        written.write()
        for name, (size, digest) in written.digests.items():
            data = (folder / name).read_bytes()
            assert len(data) == size and hashlib.sha256(data).hexdigest() == digest
        digests.append(written.digests)
    assert digests[0] == digests[1]
    assert torch.equal(load_file(folder / "w.safetensors")["w"], torch.ones(2, 3))
