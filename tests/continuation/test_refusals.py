"""Payloads that must not be restored: refused by name, before anything of them runs, and nothing is left."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import pickle
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tests.continuation import constructs
from tests.continuation.world import LOG, Manager, Pause

from p2pscoop import _continuation, continuation
from p2pscoop._continuation import analyse, bytecode, capture, envelope, pickling, restore
from p2pscoop.errors import NotPortable, PayloadError, RestoreRefused


def suspended(make: Any = constructs.with_statement) -> Any:
    coroutine = make()
    coroutine.send(None)
    return coroutine


def payload(make: Any = constructs.with_statement) -> bytes:
    coroutine = suspended(make)
    captured = capture(coroutine)
    data = captured.dumps()
    captured.discard()
    return data


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    data = payload()
    monkeypatch.setattr(envelope, "MAGIC_NUMBER", b"\x01\x0e\r\n")
    with pytest.raises(RestoreRefused, match=r"another Python: magic number .*, here 3585"):
        restore(data)


def test_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    data = payload()
    monkeypatch.setattr(envelope, "FORMAT", 2)
    with pytest.raises(RestoreRefused, match="format 1, this version reads 2"):
        restore(data)


def test_a_pickle_of_something_else() -> None:
    with pytest.raises(RestoreRefused, match="holds a list, not a continuation"):
        restore(envelope.close(pickle.dumps([1])))


def test_a_pickle_that_is_none() -> None:
    draw = random.Random(1)
    for _ in range(200):
        with pytest.raises(RestoreRefused, match=r"unpickling failed|not a continuation"):
            restore(envelope.close(draw.randbytes(40)))


@pytest.mark.parametrize("make", [constructs.nested_handlers, constructs.cells, constructs.pending_methods])
def test_other_states_than_the_frame_can_be_in(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer with a fault of its own: refused or restored, never a crash, and nothing of it runs."""
    draw = random.Random(7)
    true_values = pickling.values_of

    def values(frame: Any) -> tuple[Any, ...]:
        found = list(true_values(frame))
        if draw.random() < 0.5:
            draw.shuffle(found)
        if draw.random() < 0.2:
            found.append(None)
        return tuple(found)

    class Faulty(_continuation.Pickler):
        def _shell(self, frame: Any) -> tuple[Any, ...]:
            code, closure, offset, bound, filled, names = super()._shell(frame)
            if draw.random() < 0.3:
                bound ^= 1 << draw.randrange(8)
            if draw.random() < 0.3:
                filled ^= 1 << draw.randrange(8)
            if draw.random() < 0.2:
                offset += draw.choice([-2, 2, 40])
            return code, closure, offset, bound, filled, names

    monkeypatch.setattr(pickling, "values_of", values)
    coroutine = make()
    for _ in range(2):
        coroutine.send(None)
    captured = capture(coroutine)
    before = list(LOG)
    kept = _continuation.husks()
    refused = 0
    for _ in range(300):
        try:
            copy = restore(captured.dumps(Faulty))
        except RestoreRefused:
            refused += 1
        else:
            capture(copy).discard()
    assert refused > 100
    assert before == LOG
    assert _continuation.husks() == kept
    captured.discard()


def test_a_value_that_does_not_unpickle_takes_all_with_it() -> None:
    async def work() -> None:
        with Manager("never left"):
            bomb = Bomb()
            await Pause(bomb)

    del LOG[:]
    coroutine: Any = work()
    coroutine.send(None)
    data = continuation.dumps(coroutine)
    before = list(LOG)
    with pytest.raises(RestoreRefused, match="unpickling failed: ZeroDivisionError"):
        continuation.loads(data)
    gc.collect()
    assert before == LOG, "something of the copy ran"
    capture(coroutine).discard()
    assert before == LOG


class Bomb:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


SOURCE = """
from tests.continuation.world import Pause

async def work():
    value = {value}
    return await Pause(value)

class Group:
    async def method(self):
        await Pause(self)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(source: str) -> types.ModuleType:
        path = tmp_path / "moved_code.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("moved_code", path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "moved_code", made)
        spec.loader.exec_module(made)
        return made

    return load


def test_another_version_of_the_code(module: Any) -> None:
    data = payload(module(SOURCE.format(value=1)).work)
    module("\n\n# Lines are moved, nothing else.\n" + SOURCE.format(value=1))
    restore(data)
    module(SOURCE.format(value=2))
    with pytest.raises(RestoreRefused, match=r"moved_code.work is another version here"):
        restore(data)
    module("work = None")
    with pytest.raises(RestoreRefused, match=r"moved_code.work is not here"):
        restore(data)


def test_code_that_is_not_there(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = payload(module(SOURCE.format(value=1)).work)
    monkeypatch.delitem(sys.modules, "moved_code")
    with pytest.raises(RestoreRefused, match="moved_code cannot be imported"):
        restore(data)


def test_code_that_the_peer_does_not_know_is_carried(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coroutine = suspended(module(SOURCE.format(value=1)).work)
    data = capture(coroutine).dumps(known=lambda name: name != "moved_code")
    monkeypatch.delitem(sys.modules, "moved_code")
    copy = restore(data)
    with pytest.raises(StopIteration) as stop:
        copy.send(None)
    assert stop.value.value == 1
    coroutine.close()


def test_what_is_being_traced() -> None:
    coroutine = suspended()
    coroutine.cr_frame.f_trace = lambda *_: None
    assert continuation.check(coroutine) == "`with_statement` is being traced"
    coroutine.cr_frame.f_trace = None
    assert continuation.check(coroutine) is None
    capture(coroutine).discard()


def test_what_a_debugger_looks_at() -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("looking at locals leaves no trace since 3.13")
    coroutine = suspended(constructs.some_locals)
    assert coroutine.cr_frame.f_locals
    assert "locals()" in str(continuation.check(coroutine))
    coroutine.close()


def test_code_that_was_replaced_meanwhile() -> None:
    async def one() -> None:
        await Pause()

    async def two() -> None:
        await Pause(2)

    coroutine: Any = one()
    coroutine.send(None)
    one.__code__ = two.__code__
    assert "code was replaced" in str(continuation.check(coroutine))
    coroutine.close()


def test_an_unknown_python(monkeypatch: pytest.MonkeyPatch) -> None:
    data = payload()
    coroutine = suspended()
    monkeypatch.setattr(bytecode, "VERSION", (3, 99))
    with pytest.raises(NotPortable, match=r"proven on CPython 3\.11, 3\.12, 3\.13, this is 3\.99"):
        capture(coroutine)
    with pytest.raises(RestoreRefused, match=r"this is 3\.99"):
        restore(data)
    monkeypatch.undo()
    capture(coroutine).discard()


def test_an_unknown_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        with Manager(1):
            await Pause()

    monkeypatch.delitem(analyse.SIMPLE, "BEFORE_WITH", raising=False)
    coroutine: Any = work()
    coroutine.send(None)
    reason = continuation.check(coroutine)
    monkeypatch.undo()
    assert reason == (
        "`test_an_unknown_instruction.<locals>.work` cannot be analysed: no rule for the instruction BEFORE_WITH"
    )
    coroutine.close()


def test_the_errors_are_of_the_family() -> None:
    assert issubclass(NotPortable, (PayloadError, pickle.PicklingError))
    assert issubclass(RestoreRefused, PayloadError)
    assert issubclass(RestoreRefused, pickle.UnpicklingError)


def test_plain_unpickling_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"continuation\.loads"):
        pickle.loads(envelope.open_(payload()))


def test_verification_finds_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the prologue put a value elsewhere, the copy must not be handed out, and must not run."""
    module = importlib.import_module("p2pscoop._continuation.restore")
    data = payload(constructs.nested_with)
    true = module._distribute

    def false(shell: Any, values: Any) -> Any:
        frame = true(shell, values)
        if frame.slots:
            frame.slots[0] = object()
        return frame

    monkeypatch.setattr(module, "_distribute", false)
    kept = _continuation.husks()
    del LOG[:]
    with pytest.raises(RestoreRefused, match="was restored wrongly: locals 0 is different"):
        restore(data)
    gc.collect()
    assert LOG == []
    assert _continuation.husks() == kept
