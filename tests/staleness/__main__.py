"""Run random programs that change what a jitted function reads, and print those where it is not noticed.

python tests/staleness --seeds 0:500
python tests/staleness --seeds 17 --show
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from staleness.checking import failure_of
    from staleness.generator import generate

    parser = argparse.ArgumentParser(prog="python tests/staleness", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:100", help="a seed, or first:last, the last one excluded")
    parser.add_argument("--show", action="store_true", help="print the programs and do nothing else")
    parser.add_argument("--brief", action="store_true", help="leave out the texts of failing programs")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition(":")
    failures = 0
    for program in map(generate, range(int(first), int(last or int(first) + 1))):
        if arguments.show:
            print(program)
            continue
        try:
            failure = failure_of(program)
        except Exception as error:  # noqa: BLE001 (it is what is looked for)
            failure = "".join(traceback.format_exception_only(error)).strip()
        if failure:
            failures += 1
            print(f"seed {program.seed}: {program.name}: {failure}" if arguments.brief else f"{failure}\n{program}")
    print(f"{failures} failures in seeds {arguments.seeds}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
