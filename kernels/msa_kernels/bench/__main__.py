"""python -m msa_kernels.bench routing --json"""

from __future__ import annotations

import argparse
import json
import sys

from msa_kernels.bench import names, run
from msa_kernels.errors import KernelError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m msa_kernels.bench", description=run.__doc__)
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--repeats", type=int, default=None, help="timed runs of each side")
    arguments = parser.parse_args()
    try:
        result = run(arguments.name, arguments.repeats)
    except KernelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(result))
        return 0
    for key, value in result.items():
        print(f"{key:>20}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
