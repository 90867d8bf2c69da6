"""The documents' side of the memory explorer: pages, finding, changing and removing many; banks."""

import pytest
from playwright.sync_api import expect

from tests.serving.explorer.page import (
    documents_of,
    no_sideways_scrolling,
    opened,
)
from tests.serving.running import running

PHONE = {"width": 390, "height": 844}
BANKS = "/v1/memory/banks"
COUNT = 60


@pytest.fixture
def bank(http, request):
    """A bank of the test's own with 60 documents, numbered 0 to 59."""
    name = request.node.name.removeprefix("test_")[:60].split("[")[0]
    http.post(BANKS, json={"name": name})
    documents = [
        {
            "id": f"b{n}",
            "title": f"Bird {n}",
            "text": f"The {'heron' if n % 3 else 'Crane'} number {n} sleeps.",
            "metadata": {"kind": "wader" if n % 2 else "other"},
        }
        for n in range(COUNT)
    ]
    added = http.post(f"{BANKS}/{name}/documents", json={"documents": documents})
    assert added.status_code == 200, added.text
    yield name
    http.delete(f"{BANKS}/{name}")


@pytest.fixture
def page(browser, http, bank):
    with opened(browser, f"{http.base_url}/#/{bank}/documents") as found:
        expect(found.locator(".row")).to_have_count(25)
        yield found


def counted(page, text):
    expect(page.locator(".list-count")).to_have_text(text)


def find(page, how, text=""):
    page.get_by_role("radio", name=how).check()
    page.get_by_role("searchbox").first.fill(text)
    page.get_by_role("button", name="Find", exact=True).click()


def put(http, bank, **document):
    added = http.post(f"{BANKS}/{bank}/documents", json={"documents": [document]})
    return added.json()["numbers"]


def test_pages_have_a_total_and_are_jumped_to(page, http, bank):
    counted(page, "1–25 of 60")
    rows, last = page.locator(".row"), page.get_by_role("button", name="Last")
    expect(page.get_by_role("button", name="First")).to_be_disabled()
    last.click()
    counted(page, "51–60 of 60")
    expect(rows).to_have_count(10)
    expect(rows.first).to_be_focused()  # Last is disabled now: the keyboard goes on from here
    expect(last).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    counted(page, "26–50 of 60")
    page.get_by_role("button", name="First").click()
    counted(page, "1–25 of 60")
    number = page.get_by_label("Go to number")
    number.fill("30")
    number.press("Enter")
    counted(page, "31–55 of 60")
    expect(rows.first).to_have_attribute("data-number", "30")
    expect(rows.first).to_be_focused()
    number.fill("5000")
    number.press("Enter")
    counted(page, "51–60 of 60")
    http.post(f"{BANKS}/{bank}/documents/remove", json={"numbers": list(range(49, COUNT))})
    rows.first.click()
    page.reload()
    page.get_by_role("button", name="Last").click()
    counted(page, "26–49 of 49")


def test_words_are_found_and_told_how(page, http):
    find(page, "Words", "CRANE sleeps 3")
    expect(page.locator(".find-hint")).to_contain_text("Every word must stand in the title")
    counted(page, "1–5 of 5 that match")
    numbers = [int(each.get_attribute("data-number")) for each in page.locator(".row").all()]
    assert numbers == [n for n in range(COUNT) if n % 3 == 0 and "3" in str(n)]
    find(page, "Words", "ostrich")
    expect(page.get_by_text("No document has all of these words")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    counted(page, "1–25 of 60")


def test_a_search_is_stopped(page):
    page.route("**/documents/find", lambda route: None)  # never answered
    find(page, "Words", "crane")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".document-list").get_by_role("alert")).to_contain_text("Stopped")
    page.unroute("**/documents/find")
    page.get_by_role("button", name="Try again").click()
    counted(page, "1–20 of 20 that match")


def test_the_filter_is_that_of_questions(page):
    toggle = page.get_by_role("button", name="Filter", exact=True)
    toggle.click()
    apply = page.get_by_role("button", name="Apply filter")
    page.get_by_label("Numbers").fill("1, two")
    apply.click()
    expect(page.locator(".filter-panel").get_by_role("alert")).to_contain_text("“two”")
    page.get_by_label("Numbers").fill("1, 2 3 4")
    page.get_by_label("Metadata").fill("kind = wader")
    apply.click()
    counted(page, "1–2 of 2 that match")
    expect(page.get_by_role("button", name="Filter · 2")).to_be_visible()
    find(page, "Words", "crane")
    counted(page, "1 document matches")
    find(page, "Meaning", "crane")
    expect(page.locator(".row")).to_have_count(2)
    counted(page, "2 nearest in meaning")
    find(page, "Id", "b2")
    expect(page.get_by_text("No document has the id “b2” among those")).to_be_visible()
    find(page, "Id", "b3")
    counted(page, "1 document matches")
    page.get_by_role("button", name="Clear filter").click()
    expect(page.locator(".row")).to_have_attribute("data-number", "3")


def editing(page, number):
    page.locator(f".row[data-number='{number}']").click()
    page.locator(".document-reader").get_by_role("button", name="Edit").click()
    return page.get_by_role("dialog")


def test_a_document_is_changed(page, http, bank):
    form = editing(page, 7)
    form.get_by_role("textbox", name="Title").fill("A rare bird")
    metadata = form.get_by_label("Metadata")
    assert '"kind": "wader"' in metadata.input_value()
    metadata.fill("{")
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_role("alert").last).to_contain_text("is not JSON")
    assert http.get(f"{BANKS}/{bank}/documents/7").status_code == 200, "nothing was sent"
    metadata.fill('{"kind": "rare"}')
    form.get_by_role("textbox", name="Text").fill("It was never seen.")
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    expect(page.locator(".document-reader h2")).to_have_text("A rare bird")
    stored = http.get(f"{BANKS}/{bank}/documents/60").json()
    assert (stored["id"], stored["title"], stored["text"]) == (
        "b7",
        "A rare bird",
        "It was never seen.",
    )
    assert stored["metadata"] == {"kind": "rare"}
    assert http.get(f"{BANKS}/{bank}/documents/7").status_code == 404
    counted(page, "1–25 of 60")


def test_what_was_not_touched_stays_as_it_was(page, http, bank):
    old = {
        "title": "Two\nlines",
        "text": "One.\r\nTwo.\r\n",
        "metadata": {"large": 2**70, "one": 1.0},
    }
    (number,) = put(http, bank, **old)
    page.goto(f"{http.base_url}/#/{bank}/documents/{number}")
    page.locator(".document-reader").get_by_role("button", name="Edit").click()
    form = page.get_by_role("dialog")
    metadata, save = form.get_by_label("Metadata"), form.get_by_role("button", name="Save")
    shown = metadata.input_value()
    metadata.fill(shown + " ")
    save.click()
    expect(form.get_by_role("alert").last).to_contain_text("cannot keep exactly")
    metadata.fill(shown)
    form.get_by_role("textbox", name="Title").fill("One line")
    save.click()
    expect(page.locator(".document-reader h2")).to_have_text("One line")
    stored = http.get(f"{BANKS}/{bank}/documents/{number + 1}").json()
    assert {name: stored[name] for name in old} == old | {"title": "One line"}


def test_what_was_written_stays_where_the_server_refuses(page, http, bank):
    form = editing(page, 5)
    http.delete(f"{BANKS}/{bank}/documents/5")
    text = form.get_by_role("textbox", name="Text")
    text.fill("Hours of work.")
    form.get_by_role("button", name="Save").click()
    refused = form.get_by_role("alert").last
    expect(refused).to_contain_text("changed or removed meanwhile")
    expect(refused).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(form).to_contain_text("Leave without saving?")
    expect(text).to_have_value("Hours of work.")
    form.get_by_role("button", name="Leave").click()
    expect(form).to_have_count(0)


def test_a_split_document_without_an_id_is_changed_as_one(page, http, bank):
    parts = put(http, bank, title="Long", text="Cranes sleep standing. " * 1500)
    assert len(parts) > 1
    page.get_by_role("button", name="Last").click()
    form = editing(page, parts[1])
    expect(form).to_contain_text(f"cut into {len(parts)} parts")
    text = form.get_by_role("textbox", name="Text")
    assert text.input_value().split() == ["Cranes", "sleep", "standing."] * 1500
    text.fill("Short now.")
    form.get_by_role("button", name="Save").click()
    expect(page.locator(".document-reader .text")).to_have_text("Short now.")
    last = [each for each in documents_of(http, bank) if each["number"] >= COUNT]
    assert [(each["text"], each["id"], each["part"]) for each in last] == [("Short now.", "", 0)]


def test_many_are_removed_at_once(page, http, bank):
    page.get_by_label("Select [3] Bird 3").check()
    page.get_by_label("Select [4] Bird 4").check()
    counted(page, "2 selected")
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Select [30] Bird 30").check()
    counted(page, "3 selected")
    page.get_by_role("button", name="Remove").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("Remove 3 documents?")
    dialog.get_by_role("button", name="Remove 3 documents").click()
    expect(page.locator(".toast")).to_contain_text("3 documents were removed.")
    counted(page, "26–50 of 57")
    find(page, "Words", "heron")
    counted(page, "1–25 of 39 that match")
    page.get_by_label("Select all on this page").check()
    counted(page, "25 selected")
    page.get_by_role("button", name="Select all 39 that match").click()
    counted(page, "39 selected")
    http.delete(f"{BANKS}/{bank}/documents/1")
    page.get_by_role("button", name="Remove").click()
    dialog.get_by_role("button", name="Remove 39 documents").click()
    expect(dialog.get_by_role("alert").last).to_contain_text("38 documents")
    assert len(documents_of(http, bank)) == 56, "none was removed: others than were told match"
    dialog.get_by_role("button", name="Keep it").click()
    counted(page, "1–25 of 38 that match")
    page.get_by_label("Select all on this page").check()
    page.get_by_role("button", name="Select all 38 that match").click()
    page.get_by_role("button", name="Remove").click()
    dialog.get_by_role("button", name="Remove 38 documents").click()
    expect(page.locator(".toast").last).to_contain_text("38 documents were removed.")
    kept = [each["number"] for each in documents_of(http, bank)]
    assert kept == [n for n in range(COUNT) if n % 3 == 0 and n not in (3, 30)]


def test_long_metadata_titles_and_ids_are_folded_in_place(page, http, bank):
    metadata = {f"k{n}": "v" * (500 if n == 2 else 3) for n in range(9)}
    (number,) = put(http, bank, id="i" * 300, title="t" * 300, text="x", metadata=metadata)
    page.goto(f"{http.base_url}/#/{bank}/documents/{number}")
    reader = page.locator(".document-reader")
    expect(reader.locator("dt")).to_have_count(6)
    assert len(reader.locator("h2").inner_text()) == 201
    assert no_sideways_scrolling(page)
    for name, selector, whole in (
        ("Show all 300 characters", "h2", "t" * 300),
        ("Show all 300 characters", ".facts bdi", "i" * 300),
        ("Show all 500 characters", "dd:has(.unfold) span", "v" * 500),
    ):
        before = reader.locator(selector).bounding_box()
        button = reader.get_by_role("button", name=name).first
        button.evaluate("each => each.click()")  # a real click would scroll to it first
        expect(reader.locator(selector)).to_have_text(whole)
        after = reader.locator(selector).bounding_box()
        assert (before["x"], before["y"]) == (after["x"], after["y"])
    reader.get_by_role("button", name="Show 3 more rows").click()
    expect(reader.locator("dt")).to_have_count(9)
    reader.get_by_role("button", name="Show less").last.click()
    expect(reader.locator("dt")).to_have_count(6)


def test_fingers_find_every_control(browser, http, bank):
    with opened(browser, f"{http.base_url}/#/{bank}/documents", PHONE) as page:
        page.get_by_label("Select all on this page").check()
        page.get_by_role("button", name="Filter", exact=True).click()
        small = """() => [...document.querySelectorAll(".documents :is(button, input, label.tick)")]
            .map((each) => [each.closest("label") ?? each, each])
            .map(([box, each]) => [box.getBoundingClientRect(), each.outerHTML])
            .filter(([box]) => box.width && (box.height < 40 || box.width < 40))
            .map(([box, html]) => `${box.width} x ${box.height} ${html.slice(0, 90)}`)"""
        assert page.evaluate(small) == []
        page.locator(".row").first.click()
        expect(page.locator(".document-reader h2")).to_be_visible()
        expect(page.locator(".finding")).to_be_hidden()
        assert page.evaluate(small) == []
        assert no_sideways_scrolling(page)


@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
def test_many_banks_are_searched(browser, tmp_path, size):
    with running(tmp_path) as (client, _):
        for n in range(6):
            client.post(BANKS, json={"name": f"alpha-{n}"})
        with opened(browser, str(client.base_url), *([size] if size else [])) as page:
            expect(page.locator("a.bank")).to_have_count(7)
            field = page.get_by_label("Find a bank")
            expect(field).to_be_hidden()
            for n in range(6, 20):
                client.post(BANKS, json={"name": f"alpha-{n}"})
            page.goto(f"{client.base_url}/#/alpha-9/documents")
            page.reload()
            if size:
                page.get_by_role("button", name="Banks").click()
            current = page.locator("a.bank[aria-current]")
            expect(current).to_be_in_viewport()
            assert page.evaluate("scrollY") == 0
            expect(page.get_by_role("button", name="New bank")).to_be_in_viewport()
            field.fill("ALPHA-1")
            expect(page.locator("a.bank")).to_have_count(12)  # 1, 10 to 19, and the current one
            expect(current).to_contain_text("alpha-9")
            field.press("ArrowDown")
            expect(current).to_be_focused()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
            expect(page.locator("a.bank").nth(2)).to_be_focused()
            page.keyboard.press("ArrowUp")
            page.keyboard.press("ArrowUp")
            page.keyboard.press("ArrowUp")
            expect(field).to_be_focused()
            field.fill("alpha-17")
            field.press("Enter")
            expect(page.get_by_role("heading", name="alpha-17")).to_be_visible()
            if size:
                page.get_by_role("button", name="Banks").click()
            expect(current).to_contain_text("alpha-17")
            assert no_sideways_scrolling(page)


def test_a_filter_that_is_half_written_is_not_passed_over(page):
    toggle = page.get_by_role("button", name="Filter", exact=True)
    problem = page.locator(".filter-panel").get_by_role("alert")
    toggle.click()
    page.get_by_label("Added after").focus()
    page.keyboard.type("0102")  # the value of a date without year and time is empty
    toggle.click()
    find(page, "Words", "crane")
    expect(problem).to_contain_text("“Added after” is no whole date")  # the panel is open again
    counted(page, "1–25 of 60")
    page.get_by_role("button", name="Clear filter").click()
    counted(page, "1–20 of 20 that match")
    page.get_by_label("Metadata").fill("kind = wader\nkind = other")
    page.get_by_role("button", name="Apply filter").click()
    expect(problem).to_contain_text("“kind” twice")
    page.get_by_role("link", name="Ask", exact=True).click()
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Added before").focus()
    page.keyboard.type("0102")
    page.get_by_label("Question").fill("Which cranes sleep?")
    page.keyboard.press("Enter")
    expect(page.locator(".composer-problem")).to_contain_text("“Added before” is no whole date")
    expect(page.locator(".run")).to_have_count(0)


def test_the_way_back_from_a_document_is_the_list(browser, http, bank):
    with opened(browser, f"{http.base_url}/#/{bank}/documents", PHONE) as page:
        title, rows = page.locator(".document-reader h2"), page.locator(".row")
        rows.nth(2).click()
        expect(title).to_have_text("Bird 2")
        page.go_back()
        expect(rows.nth(2)).to_be_visible()
        expect(title).to_be_hidden()
        page.go_forward()
        expect(title).to_have_text("Bird 2")
        page.get_by_role("button", name="All documents").click()
        expect(rows.nth(2)).to_be_visible()
        assert page.url.endswith(f"#/{bank}/documents")
        rows.nth(3).click()
        expect(title).to_have_text("Bird 3")
        page.get_by_role("link", name="Documents", exact=True).click()
        expect(rows.nth(3)).to_be_visible()
        expect(title).to_be_hidden()


def test_a_bank_that_somebody_else_dropped_is_gone_from_the_page(page, http, bank):
    http.delete(f"{BANKS}/{bank}")
    find(page, "Words", "crane")
    expect(page.get_by_text("No such bank")).to_be_visible()
    expect(page.locator("#banks")).not_to_contain_text(bank)


def test_what_leaving_means_while_a_document_is_sent(page, bank):
    page.route("**/documents", lambda route: None)  # never answered
    page.get_by_role("button", name="Add documents").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_role("textbox", name="Id")).to_have_attribute("placeholder", "none if empty")
    form.get_by_role("textbox", name="Text").fill("A new bird.")
    form.get_by_role("button", name="Add document").click()
    page.keyboard.press("Escape")
    expect(form).to_contain_text("What was sent may be saved all the same")
    form.get_by_role("button", name="Leave").click()
    expect(form).to_have_count(0)


def test_a_text_from_right_to_left_is_cut_at_its_end(page, http, bank):
    (number,) = put(http, bank, id="طير", title="الطيور", text="كل الطيور نائمة هنا. " * 9)
    page.get_by_role("button", name="Last").click()
    row = page.locator(f".row[data-number='{number}']")
    expect(row).to_be_visible()
    first_is_seen = """(facts) => {
        const range = document.createRange();
        range.setStart(facts.lastElementChild.firstChild, 0);
        range.setEnd(facts.lastElementChild.firstChild, 1);
        const [seen, box] = [range, facts].map((each) => each.getBoundingClientRect());
        return seen.width > 0 && seen.left >= box.left && seen.right <= box.right + 1;
    }"""
    assert row.locator(".row-facts").evaluate(first_is_seen)


def test_removed_documents_that_still_count_are_told(page, http, bank):
    http.post(f"{BANKS}/{bank}/documents/remove", json={"numbers": list(range(COUNT))})
    page.reload()
    entry = page.locator("a.bank[aria-current]")
    expect(entry).to_contain_text("60 removed still count until it is compacted")
