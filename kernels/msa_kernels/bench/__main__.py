"""python -m msa_kernels.bench [SUITE ...] [--json]"""

from __future__ import annotations

import argparse
import json
import sys

from msa_kernels.bench import names, run
from msa_kernels.errors import KernelError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m msa_kernels.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", default=names(), help=", ".join(names()))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each side")
    arguments = parser.parse_args()
    try:
        result = run(arguments.suites, arguments.repeats)
    except KernelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(result))
        return 0
    for row in result:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
