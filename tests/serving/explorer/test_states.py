"""What the memory explorer says when something is in the way."""

import contextlib

import pytest
from playwright.sync_api import expect

from msa_train.memory.bank.writer import BankWriter
from msa_train.serving.access import ApiKeys
from tests.memory.building import flip
from tests.serving.explorer.page import NARROW, ask, opened, short_answers
from tests.serving.running import running, tiny_bank

WRITES, READS = "a-key-that-may-write-0001", "a-key-that-may-read-00002"
CHAT = "**/v1/chat/completions"
NO_STORAGE = """Object.defineProperty(window, "sessionStorage", {
    get() { throw new DOMException("denied", "SecurityError"); },
})"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(client, folder of bank `notes`) of a server that asks for keys."""
    folder = tmp_path_factory.mktemp("served")
    keys = folder / "keys.yaml"
    keys.write_text(
        f"- {{key: {WRITES}, name: w, access: write}}\n- {{key: {READS}, name: r, access: read}}\n"
    )
    with running(folder, keys=ApiKeys.load(keys)) as (client, _):
        yield client, folder / "notes"


@pytest.fixture
def page(browser, served):
    with opened(browser, str(served[0].base_url), key=WRITES) as found:
        short_answers(found)
        expect(found.get_by_role("heading", name="notes")).to_be_visible()
        yield found


def open_adding(page, text="A text."):
    page.get_by_role("link", name="Documents", exact=True).click()
    page.get_by_role("button", name="Add documents").click()
    page.get_by_role("dialog").get_by_role("textbox", name="Text").fill(text)
    return page.get_by_role("dialog")


def test_asks_for_a_key_until_one_is_accepted(browser, served):
    with opened(browser, str(served[0].base_url)) as page:
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server asks for a key")
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog).to_contain_text("That key was not accepted")
        dialog.get_by_label("Key").fill(WRITES)
        dialog.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("link", name="notes")).to_be_visible()
        expect(page.locator("#model")).to_have_text("tiny")
        assert page.evaluate("localStorage.length") == 0
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_a_browser_that_lets_nothing_be_stored(browser, served):
    with opened(browser, str(served[0].base_url), script=NO_STORAGE) as page:
        page.get_by_role("dialog").get_by_label("Key").fill(WRITES)
        page.get_by_role("dialog").get_by_role("button", name="Use key").click()
        expect(page.get_by_role("heading", name="notes")).to_be_visible()
        short_answers(page)
        expect(ask(page, "Is anything kept?").locator(".sources")).to_be_visible()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator(".run")).to_have_count(0)
        page.reload()
        expect(page.get_by_role("dialog")).to_contain_text("This server asks for a key")


def test_declining_leaves_the_reason_and_a_way_back(browser, served):
    with opened(browser, str(served[0].base_url)) as page:
        page.get_by_role("dialog").press("Escape")
        expect(page.locator("main").get_by_role("alert")).to_contain_text("A key is needed")
        page.locator("main").get_by_role("button", name="Try again").click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_key_that_may_only_read(browser, served):
    with opened(browser, str(served[0].base_url), key=READS) as page:
        dialog = open_adding(page)
        dialog.get_by_role("button", name="Add document").click()
        expect(dialog.get_by_role("alert")).to_contain_text("This key may only read")
        expect(dialog.get_by_role("textbox", name="Text")).to_have_value("A text.")


def test_writer_of_another_process_is_named_and_trying_again_works(page, served):
    dialog = open_adding(page, "Written after the other one.")
    with BankWriter(served[1], "compact"):
        dialog.get_by_role("button", name="Add document").click()
        expect(dialog.get_by_role("alert")).to_contain_text(
            "Someone else is writing", timeout=20_000
        )
    dialog.get_by_role("button", name="Try again").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".rows")).to_contain_text("Written after the other one.")


def test_bank_that_cannot_be_opened_says_why_and_can_be_dropped(browser, tmp_path):
    bad = tmp_path / "banks" / "bad"
    bad.parent.mkdir()
    flip(tiny_bank(bad) / "manifest.json")
    with running(tmp_path) as (client, _), opened(browser, f"{client.base_url}/#/bad/ask") as page:
        alert = page.locator("main").get_by_role("alert")
        expect(alert).to_contain_text("This bank cannot be opened")
        expect(alert).to_contain_text("is damaged")
        expect(page.locator("#banks")).to_contain_text("cannot be opened")
        page.get_by_role("button", name="Drop this bank").click()
        page.get_by_role("dialog").get_by_role("button", name="Drop bank").click()
        expect(page.locator("#banks")).not_to_contain_text("cannot be opened")
    assert not bad.exists()


def test_busy_server_says_when_to_try_again(page):
    busy = {"error": {"message": "64 answers run and 128 wait", "type": "rate", "code": "busy"}}
    page.route(
        CHAT, lambda route: route.fulfill(status=429, json=busy, headers={"Retry-After": "2"})
    )
    run = ask(page, "Anybody there?")
    expect(run.get_by_role("alert")).to_contain_text("The server is busy")
    expect(run.get_by_role("alert")).to_contain_text("64 answers run")
    again = run.get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    expect(again).to_contain_text("in 2 s")
    page.unroute(CHAT)
    short_answers(page)
    expect(again).to_be_enabled()
    again.click()
    expect(page.locator(".heat")).to_be_visible()
    expect(page.locator(".run")).to_have_count(1)


def test_failing_and_breaking_off_are_told_and_what_came_stays(page):
    failing = {
        "error": {"message": "the server failed", "type": "server", "code": "internal_error"}
    }
    page.route(CHAT, lambda route: route.fulfill(status=500, json=failing))
    expect(ask(page, "One?").get_by_role("alert")).to_contain_text("Something went wrong")
    page.unroute(CHAT)
    said = 'data: {"choices":[{"index":0,"delta":{"content":"Half an"},"finish_reason":null}]}\n\n'
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=said))
    run = ask(page, "Two?")
    expect(run.locator(".answer")).to_have_text("Half an")
    expect(run.get_by_role("alert")).to_contain_text("The answer broke off")
    page.unroute(CHAT)
    error = 'data: {"error":{"message":"a rank died","type":"server_error","code":"engine"}}\n\n'
    page.route(
        CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=said + error)
    )
    expect(ask(page, "Three?").get_by_role("alert")).to_contain_text("a rank died")


def test_running_answer_is_cancelled(page):
    waiting = []
    page.route(CHAT, lambda route: waiting.append(route))  # never answered
    page.get_by_label("Question").fill("Will it ever end?")
    page.keyboard.press("Enter")
    expect(page.locator(".run-status")).to_contain_text("Waiting for the server")
    expect(page.locator(".clock")).to_contain_text(" s")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".run-status")).to_contain_text("Cancelled after")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask")).to_be_visible()
    page.unroute(CHAT)
    with contextlib.suppress(Exception):  # the page has let go of it
        waiting[0].abort()


def test_server_that_is_down_and_comes_back(page):
    banks = "**/v1/memory/banks"
    page.route(banks, lambda route: route.abort())
    page.reload()
    expect(page.locator("main").get_by_role("alert")).to_contain_text("No answer from the server")
    page.unroute(banks)
    page.locator("main").get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="notes")).to_be_visible()


def test_waiting_is_shown(page):
    held = []
    page.route("**/documents?*", lambda route: held.append(route))
    page.get_by_role("link", name="Documents", exact=True).click()
    expect(page.locator(".document-list .loading")).to_be_visible()
    held[0].continue_()
    expect(page.locator(".row").first).to_be_visible()


def test_keyboard_reaches_the_content_first(browser, served):
    with opened(browser, str(served[0].base_url), NARROW, key=WRITES) as page:
        expect(page.get_by_role("heading", name="notes")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Ask")).to_be_focused()
