"""All measurements, or those named: `python -m benchmarks spawn start scaling`, for example."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.common import Result, report

NAMES = ("spawn", "continuation", "start", "secure", "idle", "exits", "scaling", "scoop", "chaos", "strangers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[[], *NAMES], help=f"some of {', '.join(NAMES)}  [default: all]"
    )
    chaos = parser.add_argument_group("chaos")
    chaos.add_argument("--runs", type=int, default=4, help="programs with kills  [default: %(default)s]")
    chaos.add_argument("--seconds", type=float, default=30.0, help="of each  [default: %(default)s]")
    chaos.add_argument("--nodes", type=int, default=8, help="of each  [default: %(default)s]")
    strangers = parser.add_argument_group("strangers")
    strangers.add_argument("--count", type=int, default=10_000, help="how many call  [default: %(default)s]")
    options = parser.parse_args()
    settings = {
        "chaos": {"runs": options.runs, "seconds": options.seconds, "nodes": options.nodes},
        "strangers": {"count": options.count},
    }
    results: list[Result] = []
    for name in options.names or NAMES:
        results += importlib.import_module(f"benchmarks.{name}").run(**settings.get(name, {}))
    report(results)


if __name__ == "__main__":
    main()
