"""The memory explorer end to end: Chromium, the page, and the server over a tiny model."""

import json

from playwright.sync_api import expect

from msa_train.memory.search.hybrid import WordIndexes
from tests.serving.explorer.page import (
    NARROW,
    answer_of,
    ask,
    documents_of,
    made_file,
    no_sideways_scrolling,
    opened,
    short_answers,
    shown_score,
)
from tests.serving.running import running

QUESTION = "What is the code of the harbour?"


def test_shows_banks_with_their_sizes(page, http):
    info = http.get("/v1/memory/banks/notes").json()
    bank = page.get_by_role("link", name="notes")
    for name in ("documents", "tokens", "chunks"):
        assert f"{info[name]}" in bank.locator("div", has_text=name).inner_text()
    expect(bank).to_have_attribute("aria-current", "page")
    expect(page.locator("#model")).to_have_text("tiny")


def test_answer_streams_with_what_each_layer_chose(page, http):
    run = ask(page, QUESTION)
    said = answer_of(http, QUESTION)
    content = said["choices"][0]["message"]["content"]
    assert run.locator(".answer").evaluate("each => each.textContent") == content
    expect(run.locator(".run-status")).to_contain_text("1 round · memory alone")

    [last] = said["memory"]["rounds"]
    rows = run.locator(".heat tbody tr")
    assert rows.count() == len(last["voted"])
    for place, each in enumerate(last["voted"]):
        row = rows.nth(place)
        expect(row.locator(".doc-number")).to_have_text(f"[{each['number']}]")
        assert row.locator(".vote").inner_text() == shown_score(each["score"])
        for column, layer in enumerate(sorted(last["layers"], key=int)):
            chosen = {one["number"]: one for one in last["layers"][layer]}.get(each["number"])
            shown = row.locator("td.cell").nth(column).text_content()
            assert shown == (shown_score(chosen["score"]) if chosen else "not chosen")


def test_both_scores_are_shown_where_words_choose_with_the_router(browser, tmp_path):
    with (
        running(tmp_path, words=WordIndexes()) as (http, _),
        opened(browser, str(http.base_url)) as page,
    ):
        short_answers(page)
        run = ask(page, QUESTION, "Router's votes")
        expect(run.locator(".run-status")).to_contain_text("2 rounds · router's votes and BM25")
        first, _ = answer_of(http, QUESTION, "router")["memory"]["rounds"]
        shown = run.locator(".round").first
        shown.locator("summary").click()
        expect(shown.locator(".round-summary")).to_contain_text("chosen by routers and BM25")
        rows = shown.locator(".heat tbody tr")
        assert rows.count() == len(first["fused"])
        for place, each in enumerate(first["fused"]):
            row = rows.nth(place)
            expect(row.locator(".doc-number")).to_have_text(f"[{each['number']}]")
            scores = [shown_score(each["vote"]), shown_score(each["bm25"])]
            assert row.locator(".vote").all_inner_texts() == scores
            assert row.locator(".badge").count() == (each["number"] in first["evidence"])
        assert shown.locator(".heat thead th").all_inner_texts()[:3] == ["Document", "Vote", "BM25"]
        page.set_viewport_size(NARROW)
        assert no_sideways_scrolling(page)


def test_marks_the_winning_chunk_and_switches_to_the_gate(page, http):
    run = ask(page, QUESTION)
    [last] = answer_of(http, QUESTION)["memory"]["rounds"]
    layer = min(last["layers"], key=int)
    first = last["layers"][layer][0]
    row = run.locator(f".heat tr[data-number='{first['number']}']")
    row.locator("td.cell").first.click()
    document = http.get(f"/v1/memory/banks/notes/documents/{first['number']}").json()
    start, end = document["chunks"][first["chunk"]]
    mark = run.locator(".reader mark")
    expect(mark).to_have_count(1)
    assert mark.text_content() == document["text"][start:end]
    expect(run.locator(".marks")).to_contain_text(
        f"chunk {first['chunk'] + 1} best for layer {layer}"
    )
    assert first["gate"] is not None, "the tiny model has a gate"
    run.get_by_role("radio", name="Gate's weights").check()
    expect(row.locator("td.cell").first).to_have_text(shown_score(first["gate"]))


def test_heat_map_is_read_with_the_keyboard(page):
    run = ask(page, QUESTION)
    cells = run.locator(".heat tbody tr").first.locator("td.cell")
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    expect(run.locator(".heat-detail")).to_contain_text("Layer 3")
    page.keyboard.press("ArrowDown")
    second = run.locator(".heat tbody tr").nth(1)
    expect(second.locator("td.cell").nth(1)).to_be_focused()
    second.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(second).to_have_attribute("aria-selected", "true")


def test_filter_keeps_other_documents_out(page):
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("textbox", name="Ids").fill("d2\nd41")
    run = ask(page, QUESTION)
    expect(run.locator(".run-status")).to_contain_text("filtered")
    numbers = run.locator(".doc-number").all_inner_texts()
    assert sorted(numbers) == ["[2]", "[41]"]
    page.get_by_label("Metadata").fill("no equals sign")
    page.get_by_label("Question").fill("again")
    page.get_by_label("Question").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("is not of the form: name = value")


def test_pasted_document_is_found_by_the_next_question_and_removed(page, http):
    before = {each["number"] for each in documents_of(http)}
    page.get_by_role("link", name="Documents", exact=True).click()
    page.get_by_role("button", name="Add documents").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Title").fill("Lamp 😀")
    dialog.get_by_role("textbox", name="Text").fill("😀 The code of the lamp is 77.")
    dialog.get_by_role("textbox", name="Metadata").fill("{not json")
    expect(dialog).to_contain_text("The metadata is not JSON")
    dialog.get_by_role("textbox", name="Metadata").fill('{"room": 3}')
    dialog.get_by_role("button", name="Add document").click()
    expect(page.locator(".toast")).to_contain_text("Lamp 😀")
    [added] = [each for each in documents_of(http) if each["number"] not in before]
    assert added["metadata"] == {"room": 3}

    page.get_by_role("navigation").get_by_role("link", name="Ask").click()
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("Metadata").fill("room = 3")
    run = ask(page, "What is the code of the lamp?")
    assert run.locator(".doc-number").all_inner_texts() == [f"[{added['number']}]"]
    expect(run.locator(".reader h4")).to_have_text("Lamp 😀")
    chunks = http.get(f"/v1/memory/banks/notes/documents/{added['number']}").json()["chunks"]
    marks = run.locator(".reader mark")
    places = [int(mark.get_attribute("title").split(",")[0].split()[1]) - 1 for mark in marks.all()]
    spans = [chunks[place] for place in places]
    assert spans and marks.all_text_contents() == [added["text"][start:end] for start, end in spans]

    page.get_by_role("link", name="Documents", exact=True).click()
    page.locator(f".row[data-number='{added['number']}']").click()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator(f".row[data-number='{added['number']}']")).to_have_count(0)
    assert {each["number"] for each in documents_of(http)} == before
    expect(page.get_by_role("link", name="notes").locator("dd").first).to_have_text(
        str(len(before))
    )
    page.get_by_role("navigation").get_by_role("link", name="Ask").click()
    run = ask(page, "What is the code of the lamp, now?")
    assert run.locator(".heat tbody tr").count() == 0


def test_files_are_listed_with_their_errors_then_added(page, http, tmp_path):
    http.post("/v1/memory/banks", json={"name": "files"})
    lines = [
        {"text": "one", "id": "l1"},
        {"id": "l2"},
        {"text": "two", "id": "l3", "metadata": [1]},
    ]
    files = [
        made_file(tmp_path, "notes.md", b"# The title\nA note."),
        made_file(tmp_path, "some.jsonl", "\n".join([*map(json.dumps, lines), "{"]).encode()),
        made_file(tmp_path, "latin.txt", b"\xff\xfe\xff"),
        made_file(tmp_path, "image.png", b"PNG"),
        made_file(tmp_path, "empty.txt", b" \n"),
    ]
    page.goto(f"{http.base_url}/#/files/documents")
    page.reload()
    expect(page.get_by_text("No documents yet")).to_be_visible()
    page.get_by_role("button", name="Add documents").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio", name="Files").check()
    dialog.locator("input[type=file]").set_input_files(files)
    for problem in (
        "Line 2 has no “text”", "Line 4 is not JSON", "not UTF-8", "Only .txt, .md and .jsonl",
        "The file is empty",
    ):  # fmt: skip
        expect(dialog.locator(".files")).to_contain_text(problem)
    dialog.get_by_role("button", name="Add 3 documents").click()
    expect(page.locator(".toast")).to_contain_text("3 documents were added")
    stored = {each["id"]: each for each in documents_of(http, "files")}
    assert {"notes.md", "l1", "l3"} == set(stored)
    assert stored["notes.md"]["title"] == "The title" and stored["l3"]["metadata"] == [1]

    drop = """() => {
        const data = new DataTransfer();
        data.items.add(new File(["# New title\\nAnother note."], "notes.md"));
        document.body.dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop)
    dialog.get_by_role("button", name="Add 1 document").click()
    expect(dialog.get_by_role("alert")).to_contain_text("This id is taken")
    dialog.get_by_role("button", name="Replace the stored ones").click()
    expect(dialog).to_have_count(0)
    stored = {each["id"]: each for each in documents_of(http, "files")}
    assert len(stored) == 3 and stored["notes.md"]["title"] == "New title"


def test_browses_finds_and_opens_documents(page, http):
    http.post("/v1/memory/banks", json={"name": "many"})
    texts = [{"id": f"m{n}", "title": f"Title {n}", "text": f"Crane {n}."} for n in range(30)]
    http.post("/v1/memory/banks/many/documents", json={"documents": texts})
    page.goto(f"{http.base_url}/#/many/documents")
    page.reload()
    rows = page.locator(".row")
    expect(rows).to_have_count(25)
    page.get_by_role("button", name="Next").click()
    expect(rows).to_have_count(5)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(rows).to_have_count(25)
    page.get_by_label("Id of a document").fill("m27")
    page.get_by_role("button", name="Find").click()
    expect(rows).to_have_count(1)
    rows.first.click()
    expect(page.locator(".document-reader .text")).to_have_text("Crane 27.")
    page.reload()  # the address tells which document is open
    expect(page.locator(".document-reader .text")).to_have_text("Crane 27.")
    page.get_by_label("Id of a document").fill("absent")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("No document has the id “absent”")).to_be_visible()
    page.get_by_role("radio", name="Meaning").check()
    page.get_by_label("What the documents are about").fill("Crane 3")
    page.get_by_role("button", name="Find").click()
    expect(rows.first).to_contain_text("score")


def test_banks_are_made_and_dropped(page, http):
    page.get_by_role("button", name="New bank").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("no good name")
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.get_by_role("alert")).to_contain_text("letters, digits")
    dialog.get_by_label("Name").fill("fresh")
    dialog.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="fresh")).to_be_visible()
    page.get_by_role("button", name="Drop this bank").click()
    dialog.get_by_role("button", name="Keep it").click()
    assert http.get("/v1/memory/banks/fresh").status_code == 200
    page.get_by_role("button", name="Drop this bank").click()
    dialog.get_by_role("button", name="Drop bank").click()
    expect(page.get_by_text("There is no bank “fresh” here")).to_be_visible()
    assert http.get("/v1/memory/banks/fresh").status_code == 404
