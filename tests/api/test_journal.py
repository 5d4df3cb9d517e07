"""Journals of `map`: what was computed once is not computed again, however the program ended."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Script, eventually

from p2pscoop import futures
from p2pscoop._journal import digest_of
from p2pscoop.errors import ConfigurationError, NotPicklableError


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], int]:
    """How many calls were made, wherever."""
    return lambda: len((tmp_path / "calls").read_text().splitlines()) if (tmp_path / "calls").exists() else 0


def square_noted(folder: Path, x: int) -> int:
    with (folder / "calls").open("a") as file:
        file.write(f"{x}\n")
    return x * x


@pytest.mark.usefixtures("nodes")
def test_results_are_used_again(tmp_path: Path, calls: Callable[[], int]) -> None:
    journal = tmp_path / "run.sqlite"
    expected = [x * x for x in range(30)]
    for _ in range(2):
        assert list(futures.map(square_noted, [tmp_path] * 30, range(30), journal=journal)) == expected
        assert calls() == 30
    # More items are only that; one that is another is computed.
    assert list(futures.map(square_noted, itertools.repeat(tmp_path), range(40), journal=journal))[:30] == expected
    assert calls() == 40
    assert list(futures.map(square_noted, [tmp_path] * 3, [0, 7, 2], journal=journal)) == [0, 49, 4]
    assert calls() == 41
    results = futures.map_as_completed(square_noted, [tmp_path] * 4, [0, 7, 2, 3], journal=str(journal))
    assert sorted(results) == [0, 4, 9, 49]
    assert calls() == 41


@pytest.mark.usefixtures("nodes")
def test_what_raised_is_tried_again_and_raised_at_its_place(tmp_path: Path) -> None:
    def check(x: int) -> int:
        if x == 5 and not (tmp_path / "fixed").exists():
            raise LookupError("five")
        return -x

    journal = tmp_path / "run.sqlite"
    results = futures.map(check, range(8), journal=journal)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    with pytest.raises(LookupError, match="five"):
        next(results)
    (tmp_path / "fixed").touch()
    assert list(futures.map(check, range(8), journal=journal)) == [-x for x in range(8)]


@pytest.mark.usefixtures("nodes")
def test_coroutine_functions(tmp_path: Path, calls: Callable[[], int]) -> None:
    async def later(x: int) -> int:
        return await futures.submit(square_noted, tmp_path, x)

    for _ in range(2):
        assert list(futures.map(later, range(5), journal=tmp_path / "run.sqlite")) == [0, 1, 4, 9, 16]
    assert calls() == 5


@pytest.mark.usefixtures("nodes")
def test_endless_items(tmp_path: Path) -> None:
    for _ in range(2):
        results = futures.map(abs, itertools.count(), journal=tmp_path / "run.sqlite")
        assert list(itertools.islice(results, 100)) == list(range(100))
        results.close()


@pytest.mark.usefixtures("nodes")
def test_a_changed_function_is_noticed(tmp_path: Path) -> None:
    journal = tmp_path / "run.sqlite"

    def make(factor: int) -> Callable[[int], int]:
        return lambda x: x * factor

    assert list(futures.map(make(2), [1, 2], journal=journal)) == [2, 4]
    assert list(futures.map(make(2), [1, 2], journal=journal)) == [2, 4]
    with pytest.raises(ConfigurationError, match=r"has results of .* as it was.*delete the file"):
        futures.map(make(3), [1, 2], journal=journal)


@pytest.mark.usefixtures("nodes")
def test_files_that_are_no_journals(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("not a database, and long enough to be none" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE precious (x)")
    connection.close()
    for path, message in (
        (text, "cannot be used"),
        (other, "is a database of another program"),
        (tmp_path / "no" / "folder", "cannot be opened"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            futures.map(abs, [1], journal=path)
    assert text.read_text().startswith("not a database")


@pytest.mark.usefixtures("nodes")
def test_one_program_at_a_time(tmp_path: Path) -> None:
    results = futures.map(abs, [1, 2], journal=tmp_path / "run.sqlite")
    with pytest.raises(ConfigurationError, match="locked"):
        futures.map(abs, [1, 2], journal=tmp_path / "run.sqlite")
    assert list(results) == [1, 2]
    assert list(futures.map(abs, [1, 2], journal=tmp_path / "run.sqlite")) == [1, 2]


PROGRAM = """
    import os, sys, time
    import p2pscoop
    from p2pscoop import futures

    class Item:
        def __init__(self, x):
            self.x = x

    def helper(x):
        return x + OFFSET

    def work(item):
        with open("calls", "a") as file:
            file.write(f"{item.x}\\n")
        time.sleep(0.02)
        return helper(item.x), p2pscoop.rng().random()

    p2pscoop.seed(3)
    print(list(futures.map(work, map(Item, range(60)), journal="run.sqlite")))
"""


def test_a_killed_program_goes_on_where_it_was(script: Callable[..., Script], tmp_path: Path) -> None:
    program = script(PROGRAM.replace("OFFSET", "1"))
    process = program.start(nodes=2, cwd=tmp_path)
    calls = tmp_path / "calls"
    eventually(lambda: calls.exists() and len(calls.read_text().splitlines()) > 20)
    process.kill()
    process.communicate()
    # The origin is not the launcher, which was killed, but it goes with it.
    eventually(lambda: recorded(tmp_path / "run.sqlite") is not None)
    kept = recorded(tmp_path / "run.sqlite")
    assert kept is not None
    assert 0 < kept < 60
    done = len(calls.read_text().splitlines())
    second = program.run(nodes=2, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert len(calls.read_text().splitlines()) - done == 60 - kept
    (tmp_path / "run.sqlite").unlink()
    assert program.run(nodes=2, cwd=tmp_path).stdout == second.stdout


def recorded(path: Path) -> int | None:
    """How many results are in it; None while a program uses it."""
    connection = sqlite3.connect(path, timeout=0)
    try:
        count: int = connection.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    finally:
        connection.close()
    return count


def test_a_changed_helper_is_noticed(script: Callable[..., Script], tmp_path: Path) -> None:
    assert script(PROGRAM.replace("OFFSET", "1")).run(cwd=tmp_path).returncode == 0
    assert script(PROGRAM.replace("OFFSET", "1")).run(cwd=tmp_path).returncode == 0
    changed = script(PROGRAM.replace("OFFSET", "2")).run(cwd=tmp_path)
    assert changed.returncode == 1
    assert "has results of work as it was" in changed.stderr


def functions() -> Iterator[Any]:
    def plain(x: Any, y: int = 1) -> Any:
        return x

    def other(x: Any, y: int = 2) -> Any:
        return x

    class Scaler:
        def __init__(self, by: int) -> None:
            self.by = by

        def scale(self, x: int) -> int:
            return x * self.by

    yield from (plain, other, lambda: 1, lambda: 2, lambda: lambda: 1, lambda: lambda: 2)
    yield from (Scaler(1).scale, Scaler(2).scale, abs, Scaler(1), [plain], {"a": (1, 2.0, "x")}, pytest, int)
    yield lambda x: x in {1, 2}
    yield lambda x: x in {1, 3}


def test_digests_tell_apart_what_differs_and_only_that() -> None:
    first, second = ([digest_of(each, "it") for each in functions()] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


def test_digests_of_functions_that_call_themselves() -> None:
    def down(n: int) -> int:
        return n and down(n - 1)

    assert digest_of(down, "it") == digest_of(down, "it")


def test_what_has_no_digest() -> None:
    with pytest.raises(NotPicklableError, match="item 3 cannot be recognized by a journal"):
        digest_of([(x for x in ())], "item 3")
