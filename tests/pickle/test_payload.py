"""What travels, and how a part that does not is named."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future as StandardFuture
from typing import Any

import pytest

from p2pscoop._core.values import OutcomeKind
from p2pscoop._future import CANCELLED, DONE, FAILED
from p2pscoop._payload import (
    SpecEncoder,
    decode_outcome,
    decode_program,
    decode_spec,
    dumps,
    encode_error,
    encode_program,
    encode_value,
    explain,
)
from p2pscoop.errors import NotPicklableError, PayloadTooLargeError, RemoteError, RemoteTraceback

SIZE_MAX = 1_000_000


def encode(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return SpecEncoder(SIZE_MAX).encode(work, args, kwargs, b"path")


def test_specs_survive_the_trip() -> None:
    offset = 5
    work, args, kwargs, path = decode_spec(encode(lambda x, y: x + y + offset, 1, y=2))
    assert work(*args, **kwargs) == 8
    assert path == b"path"


def test_a_function_is_pickled_once_a_grant() -> None:
    encoder = SpecEncoder(SIZE_MAX)

    def work() -> None: ...

    first, second = (encoder.encode(work, (n,), {}, b"") for n in range(2))
    assert first.code is second.code
    assert SpecEncoder(SIZE_MAX).encode(work, (1,), {}, b"").code is not first.code


def test_a_function_sees_what_its_globals_were_when_it_was_given_away() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("level = 1\ndef read(): return level", space)
    assert decode_spec(encode(space["read"]))[0]() == 1
    space["level"] = 2
    assert decode_spec(encode(space["read"]))[0]() == 2


class Holder:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part: Any) -> None:
        self.part = part

    def method(self) -> None: ...


LOCK = threading.Lock()


def function_with_default(x: Any = LOCK) -> Any:
    return x


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        (LOCK, "argument 0 (_thread.lock)"),
        ([1, [LOCK]], "argument 0[1][0] (_thread.lock)"),
        ({"a": {"b": LOCK}}, "argument 0['a']['b'] (_thread.lock)"),
        ({LOCK}, "argument 0{...} (_thread.lock)"),
        (Holder(fine=1, inner=Holder(bad=LOCK)), "argument 0.inner.bad (_thread.lock)"),
        (Slotted(LOCK), "argument 0.part (_thread.lock)"),
        (Slotted(LOCK).method, "argument 0.__self__.part (_thread.lock)"),
        (functools.partial(print, LOCK), "argument 0.args[0] (_thread.lock)"),
        (lambda: LOCK, "argument 0 global 'LOCK' (_thread.lock)"),
    ],
    ids=str,
)
def test_the_part_that_does_not_pickle_is_named(argument: Any, path: str) -> None:
    if getattr(argument, "__name__", "") == "<lambda>":
        # A function of an importable module travels by name, whatever it refers to.
        argument = eval("lambda: LOCK", {"LOCK": LOCK, "__name__": "__main__"})
    with pytest.raises(NotPicklableError) as info:
        encode(print, argument)
    assert path in str(info.value)
    assert "task print cannot be pickled" in str(info.value)


def test_keyword_arguments_are_named() -> None:
    with pytest.raises(NotPicklableError, match="argument 'where'"):
        encode(print, 1, where=LOCK)


def test_a_search_for_the_part_is_bounded() -> None:
    looped: list[Any] = [list(range(1000)) for _ in range(1000)]
    looped.append(LOCK)
    assert "argument 0 (builtins.list)" in explain(looped, "argument 0", TypeError("no"))


def test_open_files_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "data.txt"
    path.write_text("content")
    for mode in ("r", "rb", "r+b"):
        with path.open(mode) as file, pytest.raises(NotPicklableError, match="cannot pickle open file"):
            encode(print, file)
    assert decode_spec(encode(print, io.BytesIO(b"content")))[1][0].read() == b"content"


def test_too_large_arguments_are_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match=r"arguments of print have \d+ bytes .* limit is 1000000"):
        encode(print, bytes(SIZE_MAX))


def test_too_large_results_are_refused() -> None:
    state, error = decode_outcome(encode_value(bytes(SIZE_MAX), "make", "node x", SIZE_MAX))
    assert state == FAILED
    assert isinstance(error, PayloadTooLargeError)
    assert "the result of make" in str(error)


def test_values_survive_the_trip() -> None:
    for value in (None, 1, "x", b"y", [1, {2: 3}], Holder):
        assert decode_outcome(encode_value(value, "f", "here", SIZE_MAX)) == (DONE, value)


def test_exceptions_survive_the_trip_with_their_traceback() -> None:
    try:
        raise KeyError("k") from ValueError("v")
    except KeyError as raised:
        state, error = decode_outcome(encode_error(raised, "node x"))
    assert state == FAILED
    assert repr(error) == "KeyError('k')"
    assert isinstance(error.__cause__, RemoteTraceback)
    for part in ("on node x", "ValueError: v", "KeyError: 'k'", "test_exceptions_survive"):
        assert part in str(error.__cause__)


class Liar(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    def __reduce__(self) -> Any:
        return int, ("7",)


def test_exceptions_that_become_something_else_on_the_way() -> None:
    state, error = decode_outcome(encode_error(Liar(), "node x"))
    assert state == FAILED
    assert isinstance(error, RemoteError)
    assert "Liar" in error.type_name
    assert "its text could not be made" in str(error)


def test_cancellation() -> None:
    from p2pscoop._core.values import Outcome

    assert decode_outcome(Outcome(OutcomeKind.CANCELLED, b"")) == (CANCELLED, None)


def test_an_outcome_that_is_no_pickle() -> None:
    from p2pscoop._core.values import Outcome

    for kind in (OutcomeKind.VALUE, OutcomeKind.ERROR):
        state, error = decode_outcome(Outcome(kind, b"garbage"))
        assert state == FAILED
        assert isinstance(error, RemoteError)


def test_programs_survive_the_trip() -> None:
    called: list[int] = []
    program = decode_program(encode_program())
    assert program.initializer is None
    program.initialize()
    program = decode_program(encode_program(abs, (-1,)))
    program.initialize()
    assert program.directory
    assert not called


def test_the_standard_futures_do_not_travel() -> None:
    with pytest.raises(NotPicklableError, match="argument 0"):
        encode(print, StandardFuture())


def test_plain_values_are_pickled_plainly() -> None:
    import pickle

    assert dumps(7) == pickle.dumps(7, 5)
