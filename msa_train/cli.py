"""`msa <command>`: thin; every command imports what it needs when it runs.

Results go to standard output (with --json: one JSON document and nothing else), logs and progress
to standard error. Exit codes: 0 done, 1 failed, 2 wrong setting or arguments, 3 data, 4 checkpoint
or export, 5 bank, 6 conformance, 7 missing package, 8 another process, 9 kernel, 10 training
diverged, 11 a file or folder that the system does not let us read or write, 12 no GPU where one is
needed, 13 a training rank's memory is full, 14 training made no progress, 130 interrupted, 143
training stopped by SIGTERM after a checkpoint.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from msa_train import __version__
from msa_train.commands import (
    ask,
    bench,
    conformance,
    data,
    doctor,
    evaluate,
    export,
    import_,
    memory,
    plan,
    quickstart,
    real,
    router,
    serve,
    train,
)
from msa_train.errors import FileError

COMMANDS = (
    doctor, quickstart, real, import_, router, data, train, export, memory, ask, plan, serve,
    evaluate, conformance, bench,
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="msa", description="Train, export and ask Memory Sparse Attention models."
    )
    parser.add_argument("--version", action="version", version=f"msa-train {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.register(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    # A file's name need not be UTF-8, and is printed all the same.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    options, overrides = build_parser().parse_known_args(arguments)
    options.overrides = overrides
    options.main = main  # quickstart runs other commands
    if overrides and not getattr(options, "takes_overrides", False):
        print(f"msa: unknown arguments {' '.join(overrides)} (see --help)", file=sys.stderr)
        return 2
    try:
        return options.run(options) or 0
    except ModuleNotFoundError as error:
        print(
            f"msa: the package {error.name!r} is not installed; `make setup`, or pip install "
            "'msa-train[train,eval,serve]', brings it",
            file=sys.stderr,
        )
        return 7
    except ValueError as error:
        if not hasattr(error, "exit_code"):
            raise
        print(f"msa: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("msa: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        refused = FileError.of(error)
        print(f"msa: {refused}", file=sys.stderr)
        return refused.exit_code


if __name__ == "__main__":
    sys.exit(main())
