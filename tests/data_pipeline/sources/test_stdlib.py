import sysconfig

import pytest

from data_pipeline.sources.stdlib import docstrings

FILES = {
    "alpha.py": '''
"""Alpha module."""
def _private():
    """Hidden."""
def public(a, *, b=1):
    """  Does it.

    In detail."""
def undocumented(): pass
class Thing(Base):
    """A thing."""
    def __init__(self, size, _hint=None): pass
    def grow(self, by):
        """Grow by that much."""
    class Part:
        """A part."""
try:
    import x
except ImportError:
    def fallback():
        """Without x."""
else:
    if True:
        async def fast(): "With x."
''',
    "beta.py": 'def copied_by_hand():\n    """Does it.\n\n\n    In   detail."""\n',
    "_secret.py": '"""Secret module."""\n',
    "_pygamma.py": '"""Gamma module."""\ndef ray():\n    "A ray."\n',
    "broken.py": "def (:\n",
    "test/test_x.py": '"""A test."""\n',
    "pkg/__init__.py": '"""A package."""\n',
    "pkg/_inner.py": '"""Inner."""\n',
    "pkg/outer.py": '"""Outer."""\n',
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return {item.name: item for item in docstrings.__wrapped__()}


def test_public_docstrings_are_found(small):
    assert list(small) == [
        "alpha",
        "alpha.Thing",
        "alpha.Thing.Part",
        "alpha.Thing.grow",
        "alpha.fallback",
        "alpha.fast",
        "alpha.public",
        "gamma",
        "gamma.ray",
        "pkg",
        "pkg.outer",
    ]


def test_signatures_and_kinds(small):
    assert (small["alpha"].kind, small["alpha"].signature) == ("module", "")
    assert small["alpha.public"].signature == "(a, *, b=1)"
    assert small["alpha.public"].parameters == ("a", "b")
    assert small["alpha.public"].text == "Does it.\n\nIn detail."
    assert small["alpha.Thing"].signature == "(size, _hint=None)"
    assert small["alpha.Thing"].parameters == ("size",)
    assert (small["alpha.Thing.grow"].kind, small["alpha.Thing.grow"].signature) == (
        "method",
        "(by)",
    )
    assert small["alpha.Thing.Part"].kind == "class"
    assert small["alpha.Thing.grow"].module == "alpha"
    assert small["alpha.Thing.grow"].last_name == "grow"


def test_of_equal_texts_the_shortest_name_stands(small):
    assert "beta.copied_by_hand" not in small, "same words as alpha.public, other spaces"


def test_the_running_interpreter_is_documented():
    found = {item.name: item for item in docstrings()}
    assert len(found) > 3000
    assert found["json.dumps"].signature.startswith("(obj, *, skipkeys=False")
    assert {"textwrap.dedent", "decimal.Context", "argparse.ArgumentParser"} <= set(found)
    texts = [" ".join(item.text.split()) for item in docstrings()]
    assert len(texts) == len(set(texts))
    assert not any(part.startswith("_") for name in found for part in name.split("."))
