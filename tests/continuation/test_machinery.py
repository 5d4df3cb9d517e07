"""The analysis, the fuzzer and the other interpreters of this machine."""

from __future__ import annotations

import dis
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import cloudpickle
import pytest
from tests.conftest import REPOSITORY
from tests.continuation import constructs
from tests.continuation.constructs import TRAVELS

from p2pscoop._continuation import bytecode, fuzz, resume
from p2pscoop._continuation.analyse import CREATED, Unknown, analyse
from p2pscoop._continuation.effects import ENDS, SIMPLE, SPECIAL

TIMEOUT_S = 110
INTERPRETERS = ("3.11", "3.12", "3.13")


def interpreter(version: str) -> str | None:
    """The interpreter of that version: on the path, or of pyenv."""
    found = [shutil.which(f"python{version}")]
    found += sorted(map(str, Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")))
    for each in found:
        if each is not None and subprocess.run([each, "-c", ""], capture_output=True, check=False).returncode == 0:
            return each
    return None


@pytest.fixture
def libraries(tmp_path: Path) -> str:
    """What the other interpreters import: this package and cloudpickle, both pure Python."""
    (tmp_path / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    return os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY), str(tmp_path)])


@pytest.mark.parametrize("version", INTERPRETERS)
def test_the_matrix_and_random_programs_on_every_interpreter(version: str, libraries: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}: its continuations are not tested here")
    # Not as `__main__`: here their code goes by name.
    matrix = "from tests.continuation import constructs; raise SystemExit(constructs.main())"
    random_programs = ("-m", "p2pscoop._continuation.fuzz", "--seed", "50", "--count", "700")
    environment = {**os.environ, "PYTHONPATH": libraries, "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (("-c", matrix), random_programs):
        done = subprocess.run(
            [python, "-W", "error::RuntimeWarning", "-W", "ignore::SyntaxWarning", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def test_the_fuzzer_tells_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "_move", lambda coroutine, _: fuzz.LOG.append("something") or coroutine)
    assert fuzz.main(["--count", "10", "--seed", "3"]) == 1
    captured = capsys.readouterr()
    assert " 1 differences" in captured.out
    assert "seed 3: side effects of main(0)" in captured.err


@pytest.mark.parametrize("version", INTERPRETERS)
def test_every_rule_agrees_with_the_interpreter_about_depth(version: str, libraries: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}: its rules are not tested here")
    program = "from tests.continuation.rules import disagreements; print(*disagreements(), sep='\\n', end='')"
    environment = {**os.environ, "PYTHONPATH": libraries, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def codes() -> list[CodeType]:
    """Of all constructs, and what is nested in them."""
    found: list[CodeType] = []
    pending: list[Any] = [make.__code__ for programs in TRAVELS.values() for make in programs.values()]
    while pending:
        code = pending.pop()
        found.append(code)
        pending += [const for const in code.co_consts if isinstance(const, CodeType)]
    return found


def test_tables_are_written_as_they_are_read() -> None:
    for code in codes():
        assert bytecode.shifted_handlers(code, 0) == code.co_exceptiontable
        moved = code.replace(
            co_code=bytes((dis.opmap["NOP"], 0)) * 70 + code.co_code,
            co_exceptiontable=bytecode.shifted_handlers(code, 70),
            co_linetable=bytecode.shifted_lines(code, 70),
        )
        assert bytecode.handlers_of(moved) == [
            each._replace(start=each.start + 140, end=each.end + 140, target=each.target + 140)
            for each in bytecode.handlers_of(code)
        ]
        assert list(moved.co_positions())[70:] == list(code.co_positions())
        assert {each[0] for each in list(moved.co_positions())[:70]} == {None}


def test_resume_codes_leave_the_rest_alone() -> None:
    for code in codes():
        for point in analyse(code).points.values():
            bound = sum(1 << index for index, kind in enumerate(point.slots) if kind != "NULL")
            filled = sum(1 << index for index, kind in enumerate(point.stack) if kind != "NULL")
            new = resume.resume_code(code, point.offset, bound, filled)
            assert new.co_code.endswith(code.co_code)
            assert new.co_name == code.co_name
            origin = resume.origin_of(new)
            assert origin is not None
            assert origin.code is code
            assert len(new.co_code) == len(code.co_code) + 2 * origin.shift


def test_points_of_a_simple_coroutine() -> None:
    points = analyse(constructs.some_locals.__code__).points
    created, waiting = points.values()
    assert created.offset == CREATED
    assert created.slots == ("NULL",) * 3
    assert waiting.slots == ("OBJECT",) * 3
    assert waiting.delegates
    assert not waiting.handling
    assert not waiting.guarded


def test_code_that_contradicts_itself_is_unknown() -> None:
    nop, pop = dis.opmap["NOP"], dis.opmap["POP_TOP"]
    code = constructs.some_locals.__code__
    with pytest.raises(Unknown, match="runs off its end"):
        analyse(code.replace(co_code=bytes((nop, 0)), co_exceptiontable=b""))
    with pytest.raises(Unknown, match="shorter than an instruction needs"):
        analyse(code.replace(co_code=bytes((pop, 0, nop, 0)), co_exceptiontable=b""))


def test_no_instruction_has_two_rules() -> None:
    assert not SIMPLE.keys() & SPECIAL.keys()
    assert SIMPLE.keys() | SPECIAL.keys() >= ENDS


def test_importing_it_has_no_side_effects() -> None:
    program = "import sys, p2pscoop.continuation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"greenlet", "msgpack", "pynng", "asyncio"} & set(done.stdout.split())
