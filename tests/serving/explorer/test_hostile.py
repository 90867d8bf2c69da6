"""The memory explorer with documents that mean harm, and on a narrow screen."""

import pytest
from playwright.sync_api import expect

from tests.serving.explorer.page import (
    NARROW,
    ask,
    no_sideways_scrolling,
    opened,
    short_answers,
)

HOSTILE = [
    ("<img src=x onerror=alert(1)>", "<script>alert(1)</script><img src=x onerror=alert(2)>"),
    ("</script><svg onload=alert(3)>", "</textarea></script><b>bold</b><iframe src=//evil.test>"),
    ("invoice\u202efdp.exe", "\u202ereversed\u202c javascript:alert(4) http://evil.test/x.png"),
    ("W" * 900, "w" * 400),
    ("", "{{constructor.constructor('alert(5)')()}} ${alert(6)} &lt;b&gt;"),
]


@pytest.mark.parametrize("size", [None, NARROW], ids=["wide", "narrow"])
def test_nothing_that_a_document_says_is_executed(browser, http, size):
    bank = "hostile-narrow" if size else "hostile"
    http.post("/v1/memory/banks", json={"name": bank})
    documents = [
        {"id": title[:900], "title": title, "text": text, "metadata": {title[:40]: text[:90]}}
        for title, text in HOSTILE
    ]
    added = http.post(f"/v1/memory/banks/{bank}/documents", json={"documents": documents})
    assert added.status_code == 200, added.text
    with opened(browser, f"{http.base_url}/#/{bank}/ask", *([size] if size else [])) as page:
        short_answers(page)
        run = ask(page, "<img src=x onerror=alert(7)>\u202e" + "Q" * 300)
        for number in added.json()["numbers"]:
            row = run.locator(f".heat tr[data-number='{number}']")
            if row.count():
                row.get_by_role("button").click()
                expect(run.locator(".reader .facts")).to_contain_text(f"number {number}")
        assert no_sideways_scrolling(page)
        page.get_by_role("link", name="Documents", exact=True).click()
        for place, number in enumerate(added.json()["numbers"]):
            page.locator(f".row[data-number='{number}']").click()
            expect(page.locator(".document-reader .facts")).to_contain_text(f"number {number}")
            text = page.locator(".document-reader .text").evaluate("each => each.textContent")
            assert text == HOSTILE[place][1]
            assert no_sideways_scrolling(page)
            if size:
                page.get_by_role("button", name="All documents").click()
        foreign = (
            "main :is(img, script, svg, iframe, b, a:not([href^='#/']), [onerror], [style*=url])"
        )
        assert page.locator(foreign).count() == 0
        assert "\u202e" not in page.locator(".document-list").inner_text()


def test_narrow_page_has_everything_and_nothing_sideways(browser, http):
    with opened(browser, str(http.base_url), NARROW) as page:
        short_answers(page)
        expect(page.locator("#banks")).to_be_hidden()
        page.get_by_role("button", name="Banks").click()
        expect(page.get_by_role("link", name="notes")).to_be_visible()
        page.get_by_role("button", name="Banks").click()
        page.get_by_role("button", name="Filter").click()
        assert no_sideways_scrolling(page)
        run = ask(page, "What is the code of the harbour?")
        expect(run.locator(".heat")).to_be_visible()
        assert no_sideways_scrolling(page)
        page.get_by_role("link", name="Documents", exact=True).click()
        page.locator(".row").first.click()
        expect(page.locator(".document-list")).to_be_hidden()
        page.get_by_role("button", name="All documents").click()
        expect(page.locator(".document-list")).to_be_visible()
        page.get_by_role("button", name="Add documents").click()
        assert no_sideways_scrolling(page)
