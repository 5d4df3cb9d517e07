"""All measurements, or those named: `python -m benchmarks spawn continuation start idle exits scaling scoop`."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.common import Result, report

NAMES = ("spawn", "continuation", "start", "idle", "exits", "scaling", "scoop")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[[], *NAMES], help=f"some of {', '.join(NAMES)}  [default: all]"
    )
    names = parser.parse_args().names or NAMES
    results: list[Result] = []
    for name in names:
        results += importlib.import_module(f"benchmarks.{name}").run()
    report(results)


if __name__ == "__main__":
    main()
