"""Random programs that move at every suspension: `python -m p2pscoop._continuation.fuzz --seed 1 --count 10000`.

Decides nothing about continuations: it writes programs (`fuzz_programs`), runs each of them once in one place
and once moving whenever it suspends, and compares what they yield, their side effects and how they end. Each
move is a suspension that was captured, pickled, restored, verified and discarded. What is pinned is counted and
stays where it is. A difference is printed with the program and the seed that makes it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import types
from collections import Counter
from typing import Any, NamedTuple

from p2pscoop._continuation.capture import capture
from p2pscoop._continuation.fuzz_programs import LOG, write_program
from p2pscoop._continuation.restore import restore
from p2pscoop.errors import NotPortable

__all__ = ["Trial", "main", "try_seed"]

_SUSPENSIONS_MAX = 400
_RUNS = 5  # Of each program, with different arguments; most of the time goes into its analysis.
_MODULE = "p2pscoop_fuzzed"


class Trial(NamedTuple):
    """What came out of one program.

    Attributes:
        moved: suspensions at which it moved.
        pinned: reasons why it did not at others.
        difference: between the two runs, or None.
        source: the program.
    """

    moved: int
    pinned: list[str]
    difference: str | None
    source: str


def try_seed(seed: int) -> Trial:
    """Write the program of a seed, run it both ways and compare.

    Every other program belongs to a module that can be imported, the rest to one that cannot: their code goes by
    name or by value.
    """
    source = write_program(random.Random(seed))
    namespace = _namespace(importable=seed % 2 == 0)
    exec(compile(source, f"<seed {seed}>", "exec"), namespace)
    pinned: list[str] = []
    suspensions = 0
    difference = None
    for argument in range(_RUNS):
        stayed = _run(namespace["main"](argument), None)
        moved = _run(namespace["main"](argument), pinned)
        suspensions += len(moved[0])
        for what, one, two in zip(("yields", "side effects", "outcome"), stayed, moved, strict=True):
            if one != two and difference is None:
                difference = f"{what} of main({argument})\n  stayed: {one}\n  moved:  {two}"
    return Trial(suspensions - len(pinned), pinned, difference, source)


def _namespace(*, importable: bool) -> dict[str, Any]:
    if not importable:
        sys.modules.pop(_MODULE, None)
        return {"__name__": _MODULE}
    module = types.ModuleType(_MODULE)
    sys.modules[_MODULE] = module
    return module.__dict__


def _run(coroutine: Any, pinned: list[str] | None) -> tuple[list[str], list[str], str]:
    """To the end; moving at every suspension if there is a list for the reasons why not."""
    LOG.clear()
    yields: list[str] = []
    error: Exception | None = None
    try:
        while len(yields) < _SUSPENSIONS_MAX:
            if error is None:
                yields.append(repr(coroutine.send(len(yields))) if yields else repr(coroutine.send(None)))
            else:
                yields.append(repr(coroutine.throw(error)))
            # What is awaited fails now and then.
            error = ValueError(len(yields)) if len(yields) % 11 == 0 else None
            if pinned is not None:
                coroutine = _move(coroutine, pinned)
        outcome = "goes on"
        captured = capture(coroutine)
        captured.discard()
    except StopIteration as stop:
        outcome = f"returned {stop.value!r}"
    except Exception as raised:
        outcome = f"raised {raised!r} from {raised.__cause__!r} in {raised.__context__!r}"
    return yields, list(LOG), outcome


def _move(coroutine: Any, pinned: list[str]) -> Any:
    before = len(LOG)
    try:
        captured = capture(coroutine)
        data = captured.dumps()
    except NotPortable as reason:
        pinned.append(str(reason))
        return coroutine
    copy = restore(data)
    captured.discard()
    if len(LOG) != before:
        LOG.append("something ran while it moved")
    return copy


def main(arguments: list[str] | None = None) -> int:
    """Run programs until so many suspensions have been moved; the exit status says whether any differed."""
    parser = argparse.ArgumentParser(prog="python -m p2pscoop._continuation.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the next ones count up")
    parser.add_argument("--count", type=int, default=2000, help="suspensions to move")
    parser.add_argument("--show", action="store_true", help="print the first program, run nothing")
    options = parser.parse_args(arguments)
    if options.show:
        print(write_program(random.Random(options.seed)))
        return 0
    moved = differences = 0
    pinned: Counter[str] = Counter()
    seed = options.seed
    while moved < options.count:
        trial = try_seed(seed)
        moved += trial.moved
        pinned.update(reason.partition(" in ")[0] for reason in trial.pinned)
        if trial.difference is not None:
            differences += 1
            print(f"seed {seed}: {trial.difference}\n{trial.source}", file=sys.stderr)
            if differences >= 10:
                break
        seed += 1
    version = ".".join(map(str, sys.version_info[:3]))
    print(
        f"Python {version}: {seed - options.seed} programs, {moved} suspensions moved, "
        f"{sum(pinned.values())} pinned, {differences} differences"
    )
    for reason, count in pinned.most_common(5):
        print(f"{count:>9} x {reason}")
    return 1 if differences else 0


if __name__ == "__main__":
    # Not as `__main__`: the programs refer to the modules of this package by name.
    from p2pscoop._continuation import fuzz

    raise SystemExit(fuzz.main())
