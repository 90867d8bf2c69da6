"""What stands around an answer on the page: sources, threads, terms, errors, and that it stays."""

import json
import re
import time

import pytest
from playwright.sync_api import expect

from tests.serving.explorer.page import (
    NARROW,
    answer_of,
    ask,
    documents_of,
    no_sideways_scrolling,
    opened,
    short_answers,
)

QUESTION = "What is the code of the harbour?"
CHAT = "**/v1/chat/completions"
NOT_THERE_YET = re.compile(r"^…$")  # of a text that is asked for
FINGER = 40  # px, at least, of what is tapped on a phone


@pytest.fixture
def phone(browser, http):
    with opened(browser, str(http.base_url), NARROW) as found:
        short_answers(found)
        yield found


def said(page, *texts, rounds=(), read=()):
    """The next answers are these, after rounds of [(number, chunk)], which end with texts read."""
    events = [
        {"event": "routed", "round": place, "layers": {"1": chosen}, "voted": chosen}
        for place, chosen in enumerate(
            [{"number": n, "score": 1.0, "gate": None, "chunk": chunk} for n, chunk in each]
            for each in rounds
        )
    ]
    events.append({"event": "evidence", "documents": list(read)})
    lines = [{"choices": [], "memory": each} for each in events]
    lines += [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    lines.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in lines) + "data: [DONE]\n\n"
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))


def refuse(page, status=500, code="internal_error", message="the server failed"):
    error = {"error": {"message": message, "type": "server", "code": code}}
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(status=status, json=error))


def in_view(page, locator) -> bool:
    box, size = locator.bounding_box(), page.viewport_size
    return box is not None and box["y"] < size["height"] - 40 and box["y"] + box["height"] > 40


@pytest.fixture(scope="module")
def long(served):
    """A document of many chunks, and the place of one far down in it."""
    served[0].post("/v1/memory/banks", json={"name": "long"})
    text = "\n".join(f"Line {n} of the long text about cranes and harbours." for n in range(150))
    document = {"id": "long", "title": "The long one", "text": text}
    added = served[0].post("/v1/memory/banks/long/documents", json={"documents": [document]})
    number = added.json()["numbers"][0]
    whole = served[0].get(f"/v1/memory/banks/long/documents/{number}").json()
    return whole, len(whole["chunks"]) * 3 // 4


@pytest.mark.parametrize("size", [None, NARROW], ids=["wide", "narrow"])
def test_a_source_shows_its_text_at_the_winning_chunk(browser, http, long, size):
    document, chunk = long
    number = document["number"]
    read = {"number": number, "id": "long", "title": "The long one"}
    with opened(browser, f"{http.base_url}/#/long/ask", *([size] if size else [])) as page:
        said(page, f"It is 7 [{number}", "], not [99].", rounds=[[(number, chunk)]], read=[read])
        run = ask(page, "Where?", "Router's votes")
        [source] = run.locator(".sources li").all()
        start, end = document["chunks"][chunk]
        begins = " ".join(document["text"][start : start + 30].split())
        expect(source).to_contain_text("The long one")
        expect(source).to_contain_text(begins)
        assert run.locator(".answer").evaluate("e => e.textContent") == (
            f"It is 7 [{number}], not [99]."
        )
        for link in (run.locator(".answer a"), source.get_by_role("link")):
            expect(link).to_have_count(1)
            link.click()
            mark = run.locator(".source-reader mark")
            expect(mark).to_have_text(document["text"][start:end], use_inner_text=False)
            expect(mark).to_be_in_viewport()
            assert in_view(page, run.locator(".source-reader h4"))
            run.locator(".source-reader").get_by_role("button", name="Close").click()
            expect(run.locator(".source-reader")).to_be_hidden()
            expect(link).to_be_focused()
        assert no_sideways_scrolling(page)


def test_memory_alone_names_what_was_attended_to(page, http):
    run = ask(page, QUESTION)
    [last] = answer_of(http, QUESTION)["memory"]["rounds"]
    expect(run.locator(".sources h3")).to_have_text("Attended to")
    shown = run.locator(".source-number").all_inner_texts()
    assert shown == [f"[{each['number']}]" for each in last["voted"][:5]]
    run.locator(".sources a").first.click()
    expect(run.locator(".source-reader .facts")).to_contain_text(f"number {shown[0][1:-1]}")


def test_a_tapped_row_brings_its_document_into_view_on_a_phone(phone):
    run = ask(phone, QUESTION)
    row = run.locator(".heat tbody tr").nth(1)
    row.get_by_role("button").click()
    reader = run.locator(".round .reader")
    expect(reader).to_be_focused()
    number = row.get_attribute("data-number")
    expect(reader.locator(".facts")).to_contain_text(f"number {number}")
    assert in_view(phone, reader.locator(".facts"))
    reader.get_by_role("button", name="Back").click()
    expect(row.get_by_role("button")).to_be_focused()


def test_a_failure_stands_with_its_question_and_says_what_to_do(page):
    refuse(page, 400, "context_length_exceeded", "2,310 tokens are more than 2,048")
    long = "Why does this question go on and on? " * 60
    page.get_by_label("Question").fill(long)
    page.get_by_label("Question").press("Enter")
    run = page.locator(".run").first
    alert = run.get_by_role("alert")
    for words in ("too long", "2,310 tokens", "Shorten the question"):
        expect(alert).to_contain_text(words)
    expect(alert).to_be_in_viewport(ratio=1)
    expect(alert.get_by_role("button", name="Try again")).to_have_count(0)
    assert len(run.locator(".question").inner_text()) == 201
    run.get_by_role("button", name=f"Show all {len(long.strip()):,} characters").click()
    expect(run.locator(".question")).to_have_text(long.strip())
    alert.get_by_role("button", name="Edit the question").click()
    expect(page.get_by_label("Question")).to_have_value(long.strip())


def test_what_was_not_asked_is_said_at_the_box(page):
    composer = page.locator(".composer")
    page.get_by_label("Question").press("Enter")
    expect(composer.get_by_role("alert")).to_contain_text("Write a question first")
    page.get_by_label("Question").fill("And now?")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("Metadata").fill("no equals sign")
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("Question").press("Enter")
    expect(composer.get_by_role("alert")).to_contain_text("is not of the form")
    expect(page.get_by_label("Metadata")).to_be_visible()


def test_answers_survive_a_reload_until_they_are_deleted(page, http):
    run = ask(page, QUESTION)
    expect(run.locator(".source-begins").filter(has_text=NOT_THERE_YET)).to_have_count(0)
    texts = [run.locator(each).inner_text() for each in (".answer", ".sources", ".run-status")]
    refuse(page)
    expect(ask(page, "And this?").get_by_role("alert")).to_contain_text("went wrong")
    page.reload()
    expect(page.locator(".run")).to_have_count(2)
    expect(page.locator(".run").first.get_by_role("alert")).to_contain_text("the server failed")
    run = page.locator(".run").nth(1)
    expect(run.locator(".source-begins").filter(has_text=NOT_THERE_YET)).to_have_count(0)
    shown = [run.locator(each).inner_text() for each in (".answer", ".sources", ".run-status")]
    assert shown == texts
    run.locator(".round summary").click()
    expect(run.locator(".heat .doc-name").first).not_to_have_text("…")
    for _ in range(2):
        page.locator(".run").first.get_by_role("button", name="Delete").click()
    page.reload()
    expect(page.get_by_text("Nothing asked yet")).to_be_visible()
    expect(page.locator(".run")).to_have_count(0)


def test_an_answer_that_a_reload_cuts_off_is_there_to_be_asked_again(page):
    page.route(CHAT, lambda route: None)  # never answered
    page.get_by_label("Question").fill("Still there?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".clock")).to_contain_text(" s")
    page.reload()
    run = page.locator(".run")
    expect(run.locator(".run-status")).to_contain_text("left before the answer was whole")
    said(page, "Yes.", rounds=[[(2, 0)]])
    run.get_by_role("button", name="Try again").click()
    expect(page.locator(".run .answer")).to_have_text(["Yes."])


def test_what_is_kept_is_bounded_and_of_this_bank(page, http):
    expect(page.get_by_text("Nothing asked yet")).to_be_visible()
    page.evaluate(
        """async () => {
            const { keep, newId } = await import("./explorer/answers.js");
            for (let n = 0; n < 30; n++) keep({ id: newId(), bank: "notes", created: "x", n });
        }"""
    )
    kept = "Object.values(sessionStorage).map(each => JSON.parse(each))"
    assert sorted(each["n"] for each in page.evaluate(kept)) == list(range(10, 30))
    page.evaluate(
        """async () => {
            const { keep, newId } = await import("./explorer/answers.js");
            const more = { bank: "other", created: "x", text: "w".repeat(4e5) };
            for (let n = 0; n < 9; n++) keep({ ...more, id: newId(), n });
        }"""
    )
    records = [(each["bank"], each["n"]) for each in page.evaluate(kept)]
    assert sorted(records) == [("other", n) for n in (5, 6, 7, 8)], "the newest, of all banks"
    page.reload()
    expect(page.get_by_text("Nothing asked yet")).to_be_visible()
    assert page.evaluate(kept) == [], "notes was made anew, and there is no other"


def test_asking_further_sends_the_turns_before_in_order(page):
    first = ask(page, QUESTION)
    answer = first.locator(".answer").evaluate("e => e.textContent")
    first.get_by_role("button", name="Ask further").click()
    expect(page.locator(".composer")).to_contain_text("searched for the new question alone")
    with page.expect_request(CHAT) as sent:
        page.get_by_label("Question").fill("And of the mill?")
        page.get_by_label("Question").press("Enter")
    assert sent.value.post_data_json["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And of the mill?"},
    ]
    for _ in range(2):
        thread = page.locator(".thread")
        expect(thread.locator(".question")).to_have_text([QUESTION, "And of the mill?"])
        expect(page.get_by_role("button", name="Ask further")).to_have_count(1)
        expect(page.locator(".following")).to_be_hidden()
        page.reload()


def test_an_answer_is_copied_with_its_sources(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    said(page, "Seven.", rounds=[[(2, 0)]], read=[{"number": 2, "id": "d2", "title": "The"}])
    ask(page, "How many?", "Router's votes").get_by_role("button", name="Copy").click()
    expect(page.locator(".toast")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "How many?\n\nSeven.\n\nTexts that were read:\n[2] The (d2)"


def test_terms_are_told_and_quiet_again(phone):
    run = ask(phone, QUESTION)
    for name in ("Memory alone", "Round", "Score", "Gate", "Layer", "Chunk", "Temperature"):
        expect(phone.get_by_role("button", name=f"“{name}”").first).to_be_attached()
    mark = run.get_by_role("button", name="What does “Gate” mean?")
    said = phone.get_by_role("status").filter(has_text="attends to it")
    mark.click()
    expect(said).to_be_in_viewport(ratio=1)
    expect(mark).to_have_attribute("aria-expanded", "true")
    phone.keyboard.press("Escape")
    expect(said).to_have_count(0)
    expect(mark).to_be_focused()
    phone.keyboard.press("Enter")
    expect(said).to_be_visible()
    run.locator(".question").click()
    expect(said).to_have_count(0)
    expect(mark).to_have_attribute("aria-expanded", "false")


def test_everything_on_a_phone_can_be_tapped(phone):
    ask(phone, QUESTION).locator(".sources a").first.click()
    small = phone.evaluate(
        """least => [...document.querySelectorAll(
                "main :is(button, a, summary, td.cell, .segmented label)")]
            .filter(each => each.checkVisibility())
            .map(each => {
                const { height } = each.getBoundingClientRect();
                const more = getComputedStyle(each, "::after");
                const added = more.content === "none" ? 0 : -2 * Number.parseFloat(more.top);
                return [each.className, each.textContent, height + (added || 0)];
            })
            .filter(([, , height]) => height < least - 0.5)""",
        FINGER,
    )
    assert small == []


def test_example_questions_fill_the_box(page, http):
    texts = [{"text": f"The code of the mill in {town} is 12, they say."} for town in ("Oa", "Ub")]
    http.post("/v1/memory/banks", json={"name": "mills"})
    http.post("/v1/memory/banks/mills/documents", json={"documents": texts})
    page.goto(f"{http.base_url}/#/mills/ask")
    page.reload()
    chips = page.locator(".example")
    expect(chips).to_have_count(2)
    page.get_by_role("button", name="What is the code of the mill in Oa?").click()
    box = page.get_by_label("Question")
    expect(box).to_have_value("What is the code of the mill in Oa?")
    expect(box).to_be_focused()
    assert len(documents_of(http, "mills")) == 2


def test_answers_go_with_their_bank_although_another_takes_its_name(page, http):
    http.post("/v1/memory/banks", json={"name": "again"})
    page.goto(f"{http.base_url}/#/again/ask")
    page.reload()
    short_answers(page)
    ask(page, "What was here before?")
    assert http.delete("/v1/memory/banks/again").status_code == 200
    time.sleep(1.1)  # a bank is known by its name and the second in which it was made
    http.post("/v1/memory/banks", json={"name": "again"})
    page.get_by_role("button", name="New bank").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("another")  # the list is read anew
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="another")).to_be_visible()
    page.get_by_role("link", name="again").click()
    expect(page.get_by_text("This memory is empty")).to_be_visible()
    expect(page.locator(".run")).to_have_count(0)


def test_what_is_too_long_is_not_offered_to_be_asked_again(page):
    refuse(page, code="context_length_exceeded", message="the conversation has 9,999 tokens")
    alert = ask(page, "Too long?").get_by_role("alert")
    expect(alert).to_contain_text("This is too long for the model")
    expect(alert.get_by_role("button", name="Edit the question")).to_be_visible()
    expect(alert.get_by_role("button", name="Try again")).to_have_count(0)
