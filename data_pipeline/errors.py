"""The exception a user of the data pipeline can meet."""


class DataError(ValueError):
    """A corpus, shard, sample or data setting is missing, broken or impossible.

    The message names the file (and line or sample), the value, and what to do.
    """

    exit_code = 3
