"""From a suspended coroutine to bytes; the original is not touched.

Decides what is refused and how the reason is put in words: which value of which function at which line. Reading
is done by `reading`, pickling by `pickling`; what becomes of the original afterwards is `discard`'s part.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import CoroutineType, GeneratorType
from typing import Any

from p2pscoop._continuation import discard as discarding
from p2pscoop._continuation import envelope
from p2pscoop._continuation.bytecode import unsupported
from p2pscoop._continuation.discard import room_for
from p2pscoop._continuation.pickling import Pickler, chain_of
from p2pscoop._continuation.reading import EMPTY, Frame, Suspended, Unreadable, state_of
from p2pscoop._continuation.values import Refused
from p2pscoop.errors import NotPortable

__all__ = ["Captured", "capture"]

MakePickler = Callable[..., Pickler]


class Captured:
    """A suspended coroutine as it stood when `capture` was called. It must not be resumed meanwhile.

    Attributes:
        coroutine: the original.
        depth: number of frames, from the coroutine inwards.
    """

    __slots__ = ("_frames", "_others", "coroutine")

    def __init__(self, coroutine: Suspended, frames: list[Frame]) -> None:
        self.coroutine = coroutine
        self._frames = frames
        self._others: list[Frame] = []

    @property
    def depth(self) -> int:
        return len(self._frames)

    def dumps(self, pickler: MakePickler = Pickler, known: Callable[[str], bool] | None = None) -> bytes:
        """The continuation as bytes, for `restore`.

        Args:
            pickler: makes the pickler, `Pickler` or a subclass; called with a file and the keyword arguments
                `known` and `frames`, to be passed on to `Pickler`.
            known: whether the receiver has the module of that name. By default: every importable one.

        Raises:
            NotPortable: a value in one of its frames does not pickle.
        """
        with io.BytesIO() as file:
            writer = pickler(file, known=known, frames=self._frames)
            try:
                writer.dump(self.coroutine)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise NotPortable(_blame(self._frames, pickler, known, error)) from error
            own = set(map(id, self._frames))
            self._others = [frame for frame in writer.frames if id(frame) not in own]
            if not room_for(self._others, shared=True):
                raise NotPortable(_TOO_MANY)
            return envelope.close(file.getvalue())

    def discard(self) -> None:
        """End the original, whose copy goes on elsewhere. Nothing of it runs, and nothing warns.

        Objects that only its frames refer to are let go, as when any local goes out of scope.
        """
        discarding.discard(self._frames, self._others)


_TOO_MANY = f"would leave a frame that cannot be ended, and {discarding.HUSKS_MAX} of them are there already"


def capture(coroutine: Suspended) -> Captured:
    """Read a suspended coroutine and all that it awaits.

    Raises:
        NotPortable: with the reason. The coroutine is as it was.
        TypeError: it is neither a coroutine nor a generator.
    """
    if not isinstance(coroutine, (CoroutineType, GeneratorType)):
        raise TypeError(f"a coroutine is needed, not a {type(coroutine).__name__}")
    reason = unsupported()
    if reason is not None:
        raise NotPortable(reason)
    state = state_of(coroutine)
    if state in ("running", "ended"):
        raise NotPortable(f"`{coroutine.__qualname__}` {'is running' if state == 'running' else 'has ended'}")
    try:
        frames = chain_of(coroutine)
    except Unreadable as error:
        raise NotPortable(str(error)) from None
    if not room_for(frames):
        raise NotPortable(_TOO_MANY)
    return Captured(coroutine, frames)


def _blame(
    frames: list[Frame], pickler: MakePickler, known: Callable[[str], bool] | None, error: BaseException
) -> str:
    """Which value of which frame does not pickle."""
    # From the inside out: what was stored last is what the user thinks of first.
    for frame in reversed(frames):
        names = [f"local `{frame.slot_name(index)}`" for index in range(len(frame.slots))]
        names += ["an intermediate value"] * len(frame.stack)
        for name, value in zip(names, (*frame.slots, *frame.stack), strict=True):
            if value is EMPTY or isinstance(value, (CoroutineType, GeneratorType)):
                continue
            problem = _problem(value, frames, pickler, known)
            if problem is not None:
                return f"holds {_words(value, problem)} in {name} of `{frame.code.co_qualname}`, line {frame.line}"
    return f"cannot be pickled: {type(error).__name__}: {error}"


def _problem(
    value: Any, frames: list[Frame], pickler: MakePickler, known: Callable[[str], bool] | None
) -> BaseException | None:
    try:
        with io.BytesIO() as file:
            pickler(file, known=known, frames=frames).dump(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _words(value: Any, problem: BaseException) -> str:
    if isinstance(problem, Refused):
        return str(problem)
    return f"a {type(value).__name__} that cannot be pickled ({type(problem).__name__}: {problem})"
