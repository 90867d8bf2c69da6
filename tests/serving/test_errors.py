"""What a client is told of errors."""

import pytest

from msa_train.errors import BankError, ConfigError, ContextError, RankError
from msa_train.serving.errors import ApiError, to_api_error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("rounds is 0"), 400, "rounds is 0"),
        (ContextError("too long"), 400, "too long"),
        (RankError("rank 1 did not answer"), 503, "rank 1"),
        (BankError("layer-2.k was changed"), 500, "layer-2.k"),
        (TimeoutError("inside"), 504, "longer than the server allows"),
        (KeyError("/inside"), 500, "its log says why"),
        (ApiError(409, "x", "taken"), 409, "taken"),
    ],
)
def test_what_a_client_is_told_of_errors(error, status, said):
    told = to_api_error(error)
    assert told.status == status and said in told.message and "inside" not in told.message
    assert told.body["error"].keys() == {"message", "type", "code"}
