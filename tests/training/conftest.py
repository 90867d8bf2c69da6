from tests.distributed.conftest import shards  # noqa: F401 (a fixture: tiny shards)
