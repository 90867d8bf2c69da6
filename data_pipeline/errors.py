"""The exception a user of the data pipeline can meet, and the check that most settings need."""


class DataError(ValueError):
    """A corpus, shard, sample or data setting is missing, broken or impossible.

    The message names the file (and line or sample), the value, and what to do.
    """

    exit_code = 3


def check_least(
    least: float, settings: object, prefix: str, *names: str, error: type[ValueError] = DataError
) -> None:
    """Refuses the first of these fields that is below `least` or not a number; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise error(f"{prefix}{name} is {value}: give {least} or more")
