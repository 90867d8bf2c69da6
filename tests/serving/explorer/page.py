"""Chromium with the memory explorer: what the page may never do fails the test it did it in."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
FEW_TOKENS = 12  # of an answer: the tiny model has nothing to say
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
expect.set_options(timeout=15_000)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, size=WIDE, key: str | None = None, script: str = ""
) -> Iterator[Page]:
    """A page of its own at `url`. Fails for a script error, a dialog of the browser, whatever the
    content security policy had to stop, and a request to anywhere else. script: runs before it."""
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on(
        "dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss())
    )
    page.on("console", lambda said: problems.append(said.text) if _bad(said.text) else None)
    origin = url.split("/", 3)[2]
    page.on(
        "request", lambda asked: None if _ours(asked.url, origin) else problems.append(asked.url)
    )
    if key is not None:
        page.add_init_script(f"sessionStorage.setItem('msa-key', {key!r})")
    if script:
        page.add_init_script(script)
    page.goto(url)
    yield page
    context.close()
    assert not problems, problems


def _bad(text: str) -> bool:
    return "Content Security Policy" in text or "Uncaught" in text


def _ours(url: str, origin: str) -> bool:
    return url.startswith((f"http://{origin}/", "data:", "blob:"))


def short_answers(page: Page) -> None:
    """Real answers of the real server, of a few tokens."""

    def shorten(route):
        body = route.request.post_data_json
        route.continue_(post_data={**body, "max_tokens": FEW_TOKENS})

    page.route("**/v1/chat/completions", shorten)


def ask(page: Page, question: str, mode: str = "Memory alone"):
    """Asks and waits; the newest answer's article."""
    page.get_by_role("radio", name=mode).check()
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    run = page.locator(".run").first
    expect(run.locator(".question")).to_have_text(in_heading(question))
    expect(run.locator(".answer")).to_have_attribute("aria-busy", "false")
    return run


def in_heading(question: str) -> str:
    """A long question stands above its answer with its beginning."""
    return question if len(question) <= 200 else f"{question[:200]}…"


def answer_of(http: httpx.Client, question: str, retrieval: str = "memory", bank: str = "notes"):
    """What the server answers to the same request, not streamed."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": FEW_TOKENS,
        "memory": {"bank": bank, "retrieval": retrieval},
    }
    answered = http.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200, answered.text
    return answered.json()


def shown_score(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def no_sideways_scrolling(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def documents_of(http: httpx.Client, bank: str = "notes") -> list[dict]:
    return http.get(f"/v1/memory/banks/{bank}/documents?limit=500").json()["documents"]


def made_file(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)
