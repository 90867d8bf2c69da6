"""The exceptions a user can meet. Each says which setting or file, what value, and what to do.

Every class carries the exit code of the command line, so that scripts can tell them apart
(data_pipeline.errors.DataError, for corpora and shards, has 3).
"""


class MSAError(ValueError):
    """Base of every error a user can cause or repair."""

    exit_code = 1


class ConfigError(MSAError):
    """A setting is unknown, of the wrong type, or impossible together with another."""

    exit_code = 2


class CheckpointError(MSAError):
    """A checkpoint or export is missing, incomplete or of another model."""

    exit_code = 4


class BankError(MSAError):
    """A memory bank is missing, incomplete or built by other weights."""

    exit_code = 5


class ConformanceError(MSAError):
    """A conformance case does not match."""

    exit_code = 6


class MissingDependencyError(MSAError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 7


class RankError(MSAError):
    """Another process is missing or late; the message names it."""

    exit_code = 8


class DivergedError(MSAError):
    """Training met losses or gradients that are not finite, more often than it may."""

    exit_code = 10
