"""The joblib backend: joblib's contract, nested calls, and scikit-learn's searches against their serial runs."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from tests.conftest import Script, descendants, eventually, nodes_of

import p2pscoop.joblib
from p2pscoop import Executor
from p2pscoop.errors import NotPicklableError, RemoteTraceback


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    with Executor(2) as executor:
        executor.submit(int).result()
        eventually(lambda: len(executor.statistics()) == 3)
        yield executor


@pytest.fixture(autouse=True)
def nothing_left_behind(shared: Executor) -> Iterator[None]:  # overrides the general one
    before = descendants()
    yield
    eventually(lambda: descendants() <= before)


@pytest.fixture
def backend(shared: Executor) -> Iterator[None]:
    with parallel_config(backend="p2pscoop", executor=shared):
        yield


def square(x: int) -> int:
    return x * x


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.usefixtures("backend")
class TestContract:
    def test_calls_are_made_on_the_nodes(self) -> None:
        assert Parallel()(delayed(square)(x) for x in range(50)) == [x * x for x in range(50)]
        pids = set(Parallel(batch_size=1)(delayed(pid_after)(0.05) for _ in range(10)))
        assert pids <= set(nodes_of())
        assert len(pids) == 2

    @pytest.mark.parametrize("n_jobs", [-1, -2, 1, 2, 3, 20, None])
    def test_any_number_of_calls_at_a_time(self, n_jobs: int | None) -> None:
        assert Parallel(n_jobs=n_jobs)(delayed(square)(x) for x in range(20)) == [x * x for x in range(20)]

    def test_effective_numbers(self) -> None:
        assert [joblib.effective_n_jobs(n) for n in (-1, -2, -3, 1, 7)] == [2, 1, 1, 1, 7]

    def test_no_calls_at_a_time_make_no_sense(self) -> None:
        with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
            Parallel(n_jobs=0)(delayed(square)(x) for x in range(3))

    def test_shared_memory_is_not_to_be_had(self) -> None:
        seen: list[int] = []
        # Asked for by a library: joblib uses threads.
        Parallel(require="sharedmem", n_jobs=2)(delayed(seen.append)(x) for x in range(5))
        assert sorted(seen) == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="does not support shared memory"):
            Parallel(backend="p2pscoop", require="sharedmem")

    @pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
    def test_generators(self, return_as: str) -> None:
        results = Parallel(return_as=return_as)(delayed(square)(x) for x in range(100))
        assert sorted(results) == sorted(x * x for x in range(100))

    def test_a_generator_that_is_dropped_stops_the_rest(self) -> None:
        results = Parallel(return_as="generator", batch_size=1)(delayed(pid_after)(0.02) for _ in range(1000))
        next(results)
        with pytest.warns(UserWarning, match="tasks"):
            results.close()

    def test_errors_are_the_callers(self) -> None:
        with pytest.raises(ZeroDivisionError) as info:
            Parallel()(delayed(divmod)(1, x) for x in (1, 0, 1))
        assert isinstance(info.value.__cause__, RemoteTraceback)
        with pytest.raises(NotPicklableError, match=r"_thread\.lock"):
            Parallel()(delayed(square)(threading.Lock()) for _ in range(2))  # type: ignore[arg-type]
        assert Parallel()([delayed(square)(3)]) == [9]

    def test_what_is_left_is_cancelled_after_an_error(self, shared: Executor) -> None:
        def fail_first(x: int) -> None:
            if x == 0:
                raise LookupError
            time.sleep(0.05)

        before = sum(each.executed for each in shared.statistics())
        with pytest.raises(LookupError):
            Parallel(batch_size=1, pre_dispatch="all")(delayed(fail_first)(x) for x in range(2000))
        assert shared.submit(square, 2).result(30) == 4
        assert sum(each.executed for each in shared.statistics()) - before < 1000

    def test_timeouts(self) -> None:
        with pytest.raises(multiprocessing.TimeoutError):
            Parallel(timeout=0.1, batch_size=1)(delayed(time.sleep)(1.0) for _ in range(2))
        assert Parallel(timeout=60)(delayed(square)(x) for x in range(3)) == [0, 1, 4]

    def test_a_parallel_that_is_kept(self) -> None:
        with Parallel() as parallel:
            for _ in range(3):
                assert parallel(delayed(square)(x) for x in range(5)) == [0, 1, 4, 9, 16]

    def test_small_calls_are_batched(self, shared: Executor) -> None:
        before = sum(each.executed for each in shared.statistics())
        Parallel()(delayed(square)(x) for x in range(5000))
        assert sum(each.executed for each in shared.statistics()) - before < 2500

    @pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
    def test_nested_calls_use_the_same_nodes(self, return_as: str) -> None:
        def inner(x: int) -> tuple[int, str]:
            backend, _ = joblib.parallel.get_active_backend()
            many = Parallel(return_as=return_as)(delayed(square)(y) for y in range(x))
            return sum(many), type(backend).__name__

        before = nodes_of()
        results = Parallel(batch_size=1)(delayed(inner)(x) for x in range(12))
        assert results == [(sum(y * y for y in range(x)), "P2PScoopBackend") for x in range(12)]
        assert nodes_of() == before

    def test_nested_errors_and_timeouts(self) -> None:
        def inner(x: int) -> str:
            try:
                Parallel(batch_size=1)(delayed(divmod)(1, y) for y in (1, 0))
            except ZeroDivisionError:
                pass
            try:
                Parallel(timeout=0.01, batch_size=1)(delayed(time.sleep)(0.3) for _ in range(2))
            except multiprocessing.TimeoutError:
                return "late"
            return "in time"

        assert Parallel()(delayed(inner)(x) for x in range(2)) == ["late"] * 2

    def test_three_levels(self) -> None:
        def level(depth: int) -> int:
            return 1 if depth == 0 else sum(Parallel()(delayed(level)(depth - 1) for _ in range(3)))

        assert level(3) == 27

    def test_waiting_calls_leave_joblibs_settings_as_they_were(self, shared: Executor) -> None:
        def inner(x: int) -> int:
            with parallel_config(n_jobs=2 + x):
                Parallel()(delayed(pid_after)(0.002) for _ in range(4))
                return int(joblib.parallel.get_active_backend()[1])

        assert Parallel(batch_size=1)(delayed(inner)(x) for x in range(8)) == list(range(2, 10))
        backends = {
            each.result(30)
            for each in [
                shared.submit(lambda: type(joblib.parallel.get_active_backend()[0]).__name__) for _ in range(20)
            ]
        }
        assert backends == {"LokyBackend"}


def test_threads_of_numeric_libraries(shared: Executor) -> None:
    def threads() -> set[int]:
        from threadpoolctl import threadpool_info

        np.zeros(1)
        return {each["num_threads"] for each in threadpool_info()}

    with parallel_config(backend="p2pscoop", executor=shared, inner_max_num_threads=3):
        assert Parallel()(delayed(threads)() for _ in range(4)) == [{3}] * 4
    with parallel_config(backend="p2pscoop", executor=shared):
        assert Parallel()(delayed(threads)() for _ in range(4)) == [shared.submit(threads).result(30)] * 4


def test_without_threadpoolctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "threadpoolctl", None)
    with pytest.raises(p2pscoop.errors.ConfigurationError, match="pip install threadpoolctl"):
        p2pscoop.joblib.P2PScoopBackend(inner_max_num_threads=1)


def test_the_executor_is_checked() -> None:
    with pytest.raises(TypeError, match=r"executor must be a p2pscoop\.Executor, not str"):
        parallel_config(backend="p2pscoop", executor="cluster")


def test_an_executor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSCOOP_NODES", "1")
    with parallel_config(backend="p2pscoop"):
        first = Parallel(n_jobs=2)(delayed(pid_after)(0.0) for _ in range(3))
        again = Parallel(n_jobs=2)(delayed(pid_after)(0.0) for _ in range(3))
        assert set(first) == set(again)
        executor = p2pscoop.joblib._shared
        assert executor is not None
        executor.shutdown()
        assert Parallel(n_jobs=2)(delayed(square)(x) for x in range(3)) == [0, 1, 4]
    assert p2pscoop.joblib._shared is not executor
    assert p2pscoop.joblib._shared is not None
    p2pscoop.joblib._shared.shutdown()


def test_under_the_launcher_it_uses_the_launchers_nodes(script: Callable[[str], Script]) -> None:
    result = script(
        """
        import os, time
        import joblib
        import p2pscoop.joblib
        from p2pscoop import futures

        def pid():
            time.sleep(0.02)
            return os.getpid()

        def several(**settings):
            return joblib.Parallel(**settings)(joblib.delayed(pid)() for _ in range(20))

        while len(p2pscoop.statistics()) < 2:
            time.sleep(0.01)
        with joblib.parallel_config(backend="p2pscoop"):
            direct = several(batch_size=1)
            inside = futures.submit(several, n_jobs=2).result()
        print(len(set(direct)), os.getpid() in direct, len(inside))
        """
    ).run(nodes=2)
    assert (result.stdout, result.stderr) == ("2 True 20\n", "")


def test_a_grid_search_over_forests_equals_the_serial_one(shared: Executor) -> None:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    data, target = load_digits(return_X_y=True)

    def search() -> Any:
        forest = RandomForestClassifier(n_estimators=12, random_state=0, n_jobs=None)
        return GridSearchCV(forest, {"max_depth": [3, 6], "min_samples_leaf": [1, 4]}, cv=3, refit=True).fit(
            data[:600], target[:600]
        )

    serial = search()
    with parallel_config(backend="p2pscoop", executor=shared, n_jobs=-1):
        parallel = search()
    assert parallel.best_params_ == serial.best_params_
    for key in ("mean_test_score", "std_test_score", "rank_test_score"):
        assert np.array_equal(parallel.cv_results_[key], serial.cv_results_[key])
    assert np.array_equal(parallel.predict(data[600:700]), serial.predict(data[600:700]))
