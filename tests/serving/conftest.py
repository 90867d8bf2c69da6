"""A server for the tests of a file that change nothing others would miss."""

import pytest

from tests.serving.running import running


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(client, server)"""
    with running(tmp_path_factory.mktemp("served")) as found:
        yield found


@pytest.fixture
def http(served):
    return served[0]
