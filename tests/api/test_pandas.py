"""The engine of pandas gives what pandas gives by itself. Needs the group `recipes`, and pandas 3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import descendants, eventually

import p2pscoop
from p2pscoop import Executor

pd = pytest.importorskip("pandas", minversion="3", reason="pandas 3: pip install --group recipes")


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    with Executor(2) as executor:
        executor.submit(int).result()
        yield executor


@pytest.fixture(autouse=True)
def nothing_left_behind(shared: Executor) -> Iterator[None]:  # overrides the general one
    before = descendants()
    yield
    p2pscoop.futures.shutdown(wait=False)
    eventually(lambda: descendants() <= before)


FRAME = pd.DataFrame(
    {"a": range(53), "b": [x / 3 for x in range(53)], "c": [x % 5 for x in range(53)]}, index=range(100, 153)
)


@pytest.mark.parametrize("axis", [0, 1, "index", "columns"])
@pytest.mark.parametrize(
    "work", [lambda x: x.sum(), lambda x: x * 2, lambda x: x.head(2), lambda x: str(x.iloc[0])], ids=range(4)
)
def test_frames(shared: Executor, axis: Any, work: Any) -> None:
    parallel = FRAME.apply(work, axis=axis, engine=p2pscoop.pandas_engine(shared))
    serial = FRAME.apply(work, axis=axis)
    assert type(parallel) is type(serial)
    assert parallel.equals(serial)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("work", [lambda x: x.sum(), lambda x: x * 2], ids=range(2))
def test_arrays(shared: Executor, axis: int, work: Any) -> None:
    engine = p2pscoop.pandas_engine(shared)
    assert FRAME.apply(work, axis=axis, raw=True, engine=engine).equals(FRAME.apply(work, axis=axis, raw=True))


def test_series(shared: Executor) -> None:
    series = FRAME["b"].where(FRAME["c"] > 1)
    engine = p2pscoop.pandas_engine(shared)
    assert series.map(lambda x: x + 1, engine=engine).equals(series.map(lambda x: x + 1))
    ignoring = series.map(str, na_action="ignore", engine=engine)
    assert ignoring.equals(series.map(str, na_action="ignore"))


def test_arguments(shared: Executor) -> None:
    def power(row: Any, exponent: int, *, plus: int) -> Any:
        return (row**exponent).sum() + plus

    engine = p2pscoop.pandas_engine(shared)
    parallel = FRAME.apply(power, axis=1, args=(2,), plus=7, engine=engine)
    assert parallel.equals(FRAME.apply(power, axis=1, args=(2,), plus=7))


def test_errors_and_nodes_of_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSCOOP_NODES", "2")
    engine = p2pscoop.pandas_engine()
    assert FRAME.apply(lambda x: x.max(), axis=1, engine=engine).equals(FRAME.max(axis=1))
    with pytest.raises(ZeroDivisionError):
        FRAME.apply(lambda x: 1 // int(x["a"] - 7), axis=1, engine=engine)
    with pytest.raises(TypeError, match="executor must be an Executor, not str"):
        p2pscoop.pandas_engine("cluster")  # type: ignore[arg-type]
