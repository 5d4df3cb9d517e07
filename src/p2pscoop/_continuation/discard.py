"""Getting rid of a suspended frame without running anything of it.

Decides how the original is ended after its copy was accepted elsewhere. Closing or collecting a suspended
coroutine throws GeneratorExit into it, and its `finally`, `except` and `with` blocks would run: a second time,
on the wrong node. So:

1. A frame that no handler of user code covers is closed; there is nothing to run.
2. Any other is *sunk*: closed by a caller that stands exactly at the recursion limit. CPython refuses to enter
   the frame, and clears a frame that it could not enter, without looking at its handlers. The limit itself is
   not touched: the caller calls itself until it is there.
3. Where the limit is too far away to go there, or a trial at first use shows that this interpreter does it
   differently, the frame is kept on purpose, as a *husk*: for ever, and since 3.13 with its locals emptied.
   Husks are counted, and no continuation that might need one is captured when there are too many.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Generator, Iterable
from types import CoroutineType, GeneratorType
from typing import Any

from p2pscoop._continuation.bytecode import VERSION
from p2pscoop._continuation.reading import (
    WRAPPER,
    Frame,
    Suspended,
    frame_of,
    state_of,
)

__all__ = ["HUSKS_MAX", "SINK_MAX", "abandon", "discard", "husks", "room_for"]

HUSKS_MAX = 10_000
"""Frames that are kept because they could not be ended."""

SINK_MAX = 20_000
"""The farthest recursion limit that is gone to; about 5 ms."""

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class whose methods may be Python

_PRUNE_EVERY = 256

_husks: dict[int, Suspended] = {}
_cycle: list[Any] = []
_sinks: bool | None = None  # Whether sinking works here; None before the trial.


def husks() -> int:
    """Number of frames that are kept because they could not be ended."""
    return sum(frame_of(each) is not None for each in _husks.values())


def room_for(frames: Iterable[Frame], *, shared: bool = False) -> bool:
    """Whether these frames could be discarded: without husks, or with room for them.

    Args:
        frames: to be discarded.
        shared: others may refer to them, so that they cannot be sunk.
    """
    few = len(_husks) < HUSKS_MAX or husks() < HUSKS_MAX
    return few or (_can_sink() and not shared) or not any(map(_is_guarded, frames))


def discard(frames: list[Frame], others: list[Frame]) -> None:
    """End these frames without running anything of them. Both lists are emptied.

    Args:
        frames: a chain from the outside in, as it was captured.
        others: frames of generators and coroutines among the values of the chain. Those that nothing else
            refers to are ended too; the rest of the program may still use the others.
    """
    _end([frame.suspended for frame in frames], [_is_guarded(frame) for frame in frames])
    left = [frame.suspended for frame in others]
    guarded = [_is_guarded(frame) for frame in others]
    # Up to here these lists kept all values alive: letting go of them at the recursion limit would have
    # confused their finalizers.
    frames.clear()
    others.clear()
    progress = True
    while progress:
        progress = False
        for index in reversed(range(len(left))):
            # One reference is the list's, one the argument's.
            if sys.getrefcount(left[index]) == 2:
                _end([left.pop(index)], [guarded.pop(index)])
                progress = True
    for each, covered in zip(left, guarded, strict=True):
        # In use elsewhere, or in a cycle; the collector must not find it there.
        if covered:
            _keep(each)


def abandon(suspended: list[Suspended]) -> None:
    """End copies that turned out not to be wanted; some may not have been started."""
    guarded: list[Suspended] = []
    for each in suspended:
        state = state_of(each)
        if state == "created":
            each.close()
        elif state == "suspended":
            guarded.append(each)
    _end(guarded, [True] * len(guarded))


def _is_guarded(frame: Frame) -> bool:
    if frame.point.guarded:
        return True
    if not frame.point.delegates:
        return False
    # Closing it closes what it awaits.
    awaited = frame.stack[-1]
    return type(awaited) not in (CoroutineType, GeneratorType, WRAPPER) and _may_have_close(awaited)


def _may_have_close(value: Any) -> bool:
    """Whether it could have a `close` of its own. Found out without running any of its code."""
    kind = type(value)
    names: set[str] = set()
    for base in kind.__mro__[:-1]:
        names |= base.__dict__.keys()
    if "__dict__" in names:
        names |= object.__getattribute__(value, "__dict__").keys()
    by_code = {"__getattr__", "__getattribute__"} if kind.__flags__ & _HEAP_TYPE else set()
    return not names.isdisjoint({"close"} | by_code)


def _end(suspended: list[Suspended], guarded: list[bool]) -> None:
    sinking: list[Suspended] = []
    closing = True
    # From the inside out: closing a frame closes what it awaits first, and that must have ended by then.
    for each, covered in zip(reversed(suspended), reversed(guarded), strict=True):
        closing = closing and not covered
        if closing:
            each.close()
        else:
            sinking.append(each)
    try:
        if sinking and _can_sink():
            _sink(sinking)
    finally:
        for each in sinking:
            if frame_of(each) is not None:
                _empty(each)
                _keep(each)


# ----------------------------------------------------------------------------------------- sinking


def _can_sink() -> bool:
    global _sinks
    if sys.getrecursionlimit() > SINK_MAX or _monitored():
        return False
    if _sinks is None:
        # A trial, with nothing but the probe.
        _sinks = _sink([])
    return _sinks


def _monitored() -> bool:
    """Whether somebody's Python code would be called on the way down (`sys.monitoring`, since 3.12)."""
    monitoring: Any = getattr(sys, "monitoring", None)
    return monitoring is not None and any(monitoring.get_tool(tool) is not None for tool in range(6))


def _sink(suspended: list[Suspended]) -> bool:
    """Close all of them where no frame can be entered, the first one first.

    Returns:
        Whether the place was right: the probe, which goes first, was not entered either.
    """
    entered = [False]
    probe = _probe(entered)
    next(probe)
    left: list[tuple[Any, bool]] = [(each, isinstance(each, CoroutineType)) for each in reversed(suspended)]
    left.append((probe, False))
    collecting, trace, profile = gc.isenabled(), sys.gettrace(), sys.getprofile()
    # A collection down there would run finalizers of others, which could not enter their frames either. The
    # same goes for functions that trace.
    gc.disable()
    sys.settrace(None)
    sys.setprofile(None)
    try:
        _descend(left, entered)
    finally:
        sys.setprofile(profile)
        sys.settrace(trace)
        if collecting:
            gc.enable()
    return not entered[0]


def _probe(entered: list[bool]) -> Generator[None, None, None]:
    try:
        yield
    except BaseException:
        entered[0] = True


def _descend(left: list[tuple[Any, bool]], entered: list[bool]) -> None:
    try:
        _descend(left, entered)
    except RecursionError:
        # At the limit. Nothing in here may call a Python function: that would be refused, and be mistaken.
        sunk = False
        while left:
            each, is_coroutine = left[-1]
            try:
                each.close()
            except RecursionError:
                pass
            if entered[0]:
                # The error came from something else, and there is room for frames. All but the probe is left.
                return
            if (each.cr_frame if is_coroutine else each.gi_frame) is not None:
                if sunk:
                    # One level up frames can be entered. What is left becomes husks.
                    return
                # Even the call of `close` was refused. One level up there is room for it, and for no more.
                raise
            del left[-1]
            sunk = True


# ------------------------------------------------------------------------------------------- husks


def _empty(suspended: Suspended) -> None:
    """Let go of the locals, where the interpreter lets them be written. Cells may belong to others too."""
    frame = frame_of(suspended)
    if frame is None or VERSION < (3, 13):
        return
    namespace = frame.f_locals
    for name in frame.f_code.co_varnames:
        if name in namespace and name not in frame.f_code.co_cellvars:
            namespace[name] = None


def _keep(suspended: Suspended) -> None:
    if not _husks:
        atexit.register(_keep_for_ever)
    _husks[id(suspended)] = suspended
    if len(_husks) % _PRUNE_EVERY == 0:
        for each in [each for each in _husks.values() if frame_of(each) is None]:
            del _husks[id(each)]


def _keep_for_ever() -> None:
    """At exit: the husks must not be collected even when this module is."""
    _cycle.append(_husks)
    _cycle.append(_cycle)
    gc.freeze()
