import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["data_pipeline", "data_pipeline.protocol", "data_pipeline.settings"]
)
def test_importing_is_light(module):
    code = (
        f"import sys, {module}; print({{'webdataset', 'wonderwords', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names():
    import data_pipeline

    assert all(hasattr(data_pipeline, name) for name in data_pipeline.__all__)
