"""Run the static analysis over every function that can be found: `python -m p2pscoop._continuation.survey`.

Counts functions that are unanalysable (they would be pinned), and fails if the analysis itself does. Each
computed depth is also compared with the stack size that the compiler reserved.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

from p2pscoop._continuation.analyse import Unknown, analyse

__all__ = ["main"]


def sources(roots: list[str]) -> Iterator[Path]:
    """Python files below the roots."""
    for root in roots:
        yield from sorted(Path(root).rglob("*.py"))


def functions(code: CodeType) -> Iterator[CodeType]:
    """A code object and all that are nested in it."""
    stack = [code]
    while stack:
        each = stack.pop()
        yield each
        stack += [const for const in each.co_consts if isinstance(const, CodeType)]


def main(arguments: list[str] | None = None) -> int:
    """Analyse everything, print the counts, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m p2pscoop._continuation.survey", description=__doc__)
    parser.add_argument("roots", nargs="*", help="directories; the standard library and site-packages if none")
    parser.add_argument("--max", type=int, default=sys.maxsize, help="stop after so many functions")
    options = parser.parse_args(arguments)
    roots = options.roots or sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")})
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for path in sources(roots):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError):
            counts["files that do not compile"] += 1
            continue
        counts["files"] += 1
        for code in functions(module):
            if counts["functions"] >= options.max:
                break
            counts["functions"] += 1
            try:
                analysis = analyse(code)
            except Unknown as error:
                counts["unanalysable"] += 1
                reasons[str(error)] += 1
                continue
            except Exception as error:
                counts["internal errors"] += 1
                print(f"{path}: {code.co_qualname}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            counts["suspension points"] += len(analysis.points)
            if any(len(point.stack) > code.co_stacksize for point in analysis.points.values()):
                counts["internal errors"] += 1
                print(f"{path}: {code.co_qualname}: deeper than its stack", file=sys.stderr)
    for name in ("files", "files that do not compile", "functions", "suspension points", "unanalysable"):
        print(f"{counts[name]:>9} {name}")
    print(f"{counts['internal errors']:>9} internal errors")
    for reason, count in reasons.most_common(10):
        print(f"{count:>9} x {reason}")
    return 1 if counts["internal errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
