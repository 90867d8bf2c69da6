"""A tiny export with banks on disk, and `msa serve` over it on a real socket."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
from safetensors.torch import save_file

from data_pipeline.schema import Document
from msa_train.interop import export
from msa_train.interop.msa_checkpoint import to_published
from msa_train.memory.build import build_bank
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def tiny_export(folder: Path) -> Path:
    """What `msa export` would write, of the tiny random model."""
    folder.mkdir(parents=True)
    model = tiny_model()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / export.WEIGHTS, metadata={"format": "pt"})
    (folder / export.CONFIG).write_text(json.dumps(to_published(model.config)))
    tiny_tokenizer().save(folder)
    fingerprint = export._fingerprint(folder)
    (folder / export.FINGERPRINT).write_text(json.dumps(fingerprint))
    return folder


def tiny_bank(path: Path, exported: Path, documents: list[Document] | None = None) -> Path:
    model, _, tokenizer, fingerprint = export.load_export(exported)
    build_bank(path, model, tokenizer, documents or tiny_documents(), fingerprint)
    return path


class Served:
    """`msa serve` as a process of its own, until it is closed."""

    def __init__(self, *arguments: object, key: str | None = None):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "msa_train.cli", "serve", *map(str, arguments), "--port", "0"],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        if not found:
            raise AssertionError(f"no server: {line}{self.process.stderr.read()}")
        self.url = found.group()[:-1]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def end(self, signal: int, timeout: float = 30) -> tuple[int, str]:
        """Exit code and what was logged."""
        self.process.send_signal(signal)
        return self.left(timeout)

    def left(self, timeout: float = 30) -> tuple[int, str]:
        self.http.close()
        _, logged = self.process.communicate(timeout=timeout)
        return self.process.returncode, logged

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
