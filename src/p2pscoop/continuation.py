"""Pickle a suspended coroutine, and let it go on in another process.

    coroutine = work()
    coroutine.send(None)                   # runs up to an `await` that waits for something
    data = continuation.dumps(coroutine)   # bytes
    copy = continuation.loads(data)        # here or elsewhere; the next `send` goes to that same `await`

The runtime does this by itself with coroutine tasks that wait; these functions are for use without it. See
`docs/continuations.md` for what travels and what does not.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from p2pscoop import _continuation
from p2pscoop.errors import NotPortable, RestoreRefused

__all__ = ["NotPortable", "RestoreRefused", "check", "dumps", "loads"]


def dumps(coroutine: Coroutine[Any, Any, Any]) -> bytes:
    """A suspended coroutine, and all that it awaits, as bytes.

    The coroutine is not changed and can still be resumed: then there are two of them.

    Raises:
        NotPortable: with the reason. The coroutine is as it was.
        TypeError: it is no coroutine.
    """
    return _continuation.capture(coroutine).dumps()  # type: ignore[arg-type]  # checked there


def loads(data: bytes) -> Coroutine[Any, Any, Any]:
    """The coroutine that `dumps` has made bytes of, suspended where it was.

    As with `pickle.loads`: only for bytes from those whom you would let run any program here.

    Raises:
        RestoreRefused: with the reason. None of its instructions has run.
    """
    return _continuation.restore(data)  # type: ignore[return-value]  # a coroutine, if one was dumped


def check(coroutine: Coroutine[Any, Any, Any]) -> str | None:
    """Why a coroutine cannot be pickled as it stands now; None if it can.

    Raises:
        TypeError: it is no coroutine.
    """
    try:
        dumps(coroutine)
    except NotPortable as error:
        return str(error)
    return None
