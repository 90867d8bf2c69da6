"""Chromium, and a page of it over the server of a file's tests."""

import pytest

from tests.serving.explorer.page import chromium, opened, short_answers


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, http):
    with opened(browser, str(http.base_url)) as found:
        short_answers(found)
        yield found
