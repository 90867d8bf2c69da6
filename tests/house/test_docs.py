"""What is written about the project is true: citations, links, and files that are named."""

import re
import shlex
import subprocess

import pytest

from msa_train.cli import build_parser
from msa_train.commands.output import config_arguments
from msa_train.config import load_config
from tests.house.sources import ROOT

_SUFFIXES = (".py", ".md", ".yaml", ".toml", ".sh", ".js", ".html")
_CITATION = re.compile(
    r"\bSPEC(?:,?\s+sections?\s+(?P<first>\d+)(?:\s*(?:,|and|to)\s*(?P<second>\d+))?)?"
    r"(?:,\s+\"(?P<paragraph>[^\"]+)\")?"
)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")
_FILE = re.compile(r"(?<![\w/.*{<-])((?:[\w-]+/)*[a-z_]\w*\.(?:py|md|sh|yaml))(?![\w/])")
_COMMAND = re.compile(r"^(?:\$ | {4})?((?:msa|deepspeed) .*)$", re.MULTILINE)
# Files that a user makes, that other projects have, or that a text uses as an example.
_NOT_OURS = {
    "config.yaml", "keys.yaml", "run.yaml", "data_pipeline/sources/phones.py",
}  # fmt: skip


def _tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _texts():
    for name in _tracked():
        if name.endswith(_SUFFIXES) or name == "Makefile":
            yield name, (ROOT / name).read_text()


def _prose(text: str) -> str:
    """With comment marks and line ends as spaces: a citation may go over the end of a line."""
    return re.sub(r"\n[ \t]*#?[ \t]*", " ", text)


def test_every_citation_of_the_specification_leads_somewhere():
    spec = (ROOT / "docs/spec.md").read_text()
    sections = set(re.findall(r"^## (\d+)\. ", spec, re.MULTILINE))
    paragraphs = set(re.findall(r"^(?:\* )?\*\*([^*]+?)\.?\*\*", spec, re.MULTILINE))
    cited, wrong = 0, []
    for name, text in _texts():
        if name in ("docs/spec.md", "tests/house/test_docs.py"):
            continue
        for found in _CITATION.finditer(_prose(text)):
            cited += 1
            numbers = [found[key] for key in ("first", "second") if found[key]]
            known = set(numbers) <= sections and found["paragraph"] in (None, *paragraphs)
            if not known or not (numbers or found["paragraph"]):
                wrong.append(f"{name}: {found[0]}")
    assert cited > 50, "the pattern finds nothing any more"
    assert not wrong


def test_links_between_pages_lead_somewhere():
    broken = []
    for name, text in _texts():
        if name.endswith(".md"):
            for target in _LINK.findall(text):
                if "://" not in target and not (ROOT / name).parent.joinpath(target).exists():
                    broken.append(f"{name}: {target}")
    assert not broken


def test_files_that_are_named_exist():
    """In comments, docstrings and pages: `search/view.py` names a file that ends so."""
    tracked = [f"/{name}" for name in _tracked()]
    gone = set()
    for name, text in _texts():
        if name.startswith("tests/") or name.startswith("docs/results/"):
            continue
        for file in _FILE.findall(text):
            known = any(each.endswith(f"/{file}") for each in tracked)
            if not known and file not in _NOT_OURS:
                gone.add(f"{name}: {file}")
    assert not gone


def _commands():
    """(page, words) of every command line that a page shows, as a shell would cut it."""
    for name, text in _texts():
        if name.endswith(".md"):
            for line in _COMMAND.findall(text.replace("\\\n", " ")):
                yield name, shlex.split(line, comments=True)


def _checked(words: list[str]) -> None:
    """Parse a command as it would be when run. Raises SystemExit or ConfigError where it fails."""
    if words[0] == "deepspeed":
        script = words.index("launch/train.py")
        load_config([word for word in words[script + 1 :] if word != "--resume"])
        return
    options, options.overrides = build_parser().parse_known_args(words[1:])
    if options.overrides and not getattr(options, "takes_overrides", False):
        raise SystemExit(f"unknown arguments {options.overrides}")
    if getattr(options, "takes_overrides", False):
        ours = all((ROOT / path).is_file() for path in options.config)  # a user's own is not there
        load_config(config_arguments(options) if ours else options.overrides)


def test_commands_that_pages_show_are_commands(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shown, wrong = 0, []
    for name, words in _commands():
        shown += 1
        try:
            _checked(words)
        except (SystemExit, ValueError) as error:
            wrong.append(f"{name}: {shlex.join(words)}: {error} {capsys.readouterr().err[-200:]}")
    assert shown > 40, "the pattern finds nothing any more"
    assert not wrong, "\n".join(wrong)


def test_the_figure_shows_every_room_and_the_words_are_few():
    figure = (ROOT / "docs/images/architecture.svg").read_text()
    titles = " ".join(re.findall(r'font-weight="bold"[^>]*>([^<]*)<', figure))
    package = ROOT / "msa_train"
    folders = [path.parent for path in (*package.glob("*/*.py"), *package.glob("memory/*/*.py"))]
    for folder in {path.name for path in folders}:
        assert re.search(rf"\b{folder}\b", titles), f"docs/images/architecture.svg lacks {folder}"
    page = (ROOT / "docs/architecture.md").read_text()
    rows = page.partition("## Words")[2].partition("\n## ")[0].count("\n| ") - 1
    assert 20 <= rows <= 25


def test_every_promise_names_a_test_that_is_there():
    table = (ROOT / "docs" / "promises.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    named = [re.search(r"`([\w/]+\.py)(?:::(test_\w+))?` \|$", row) for row in rows]
    assert len(rows) > 30 and all(named), [r for r, n in zip(rows, named, strict=True) if not n]
    for path, test in (each.groups() for each in named):
        text = (ROOT / "tests" / path).read_text()
        assert f"def {test or 'test_'}" in text, f"{path}::{test}"
