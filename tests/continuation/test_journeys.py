"""What a journey keeps, and what the reasons say."""

from __future__ import annotations

from typing import Any

from tests.continuation import constructs
from tests.continuation.world import drive

from p2pscoop import continuation


def test_the_line_is_named() -> None:
    coroutine: Any = constructs.open_file()
    coroutine.send(None)
    line = constructs.open_file.__code__.co_firstlineno + 3
    assert continuation.check(coroutine) == f"holds an open file in local `file` of `open_file`, line {line}"
    coroutine.close()


def test_it_moves_again_and_again() -> None:
    expected = drive(constructs.nested_handlers, lambda _: False)
    for _ in range(3):
        assert drive(constructs.nested_handlers, lambda _: True) == expected


def test_names_arguments_and_lines_are_kept() -> None:
    coroutine: Any = constructs.with_defaults(1, d=2)
    coroutine.__name__, coroutine.__qualname__ = "other", "other.name"
    coroutine.send(None)
    copy: Any = continuation.loads(continuation.dumps(coroutine))
    assert (copy.__name__, copy.__qualname__) == ("other", "other.name")
    assert copy.cr_frame.f_lineno == coroutine.cr_frame.f_lineno
    assert dict(copy.cr_frame.f_locals) == dict(coroutine.cr_frame.f_locals)
    assert copy.cr_code.co_filename == coroutine.cr_code.co_filename
    coroutine.close()
    copy.close()
