"""A `concurrent.futures.Executor` whose tasks run on nodes that steal them from the process that submits.

The process that makes an `Executor` only submits: user code runs in the nodes, as users of process pools expect.
Any thread may use it. Its futures are `concurrent.futures.Future` objects.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from typing import Any, ParamSpec, TypeVar

from p2pscoop import _machine
from p2pscoop._future import PATH_SIZE
from p2pscoop._payload import encode_program
from p2pscoop._pool import Pool
from p2pscoop._process_config import ORIGIN_SOCKET, local_nodes
from p2pscoop._runtime import NodeStatistics, Runtime
from p2pscoop._session import stop_supervisor
from p2pscoop._supervisor import spawn_supervisor
from p2pscoop.errors import ShutdownError

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")

_AHEAD_PER_NODE = 64
"""Calls of `map` under way for each node, beyond the one whose result is wanted next."""


class _Engine:
    """Pool, runtime and supervisor of one executor. It outlives the executor until all its futures have ended."""

    def __init__(self, nodes: int, program: bytes) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._directory = _machine.make_directory()
        self.pool = Pool(lambda: self.runtime.feed(), lambda serial: self.runtime.settled_at_home(serial), _path())
        try:
            self.runtime = Runtime(
                self.pool,
                name="executor",
                directory=self._directory,
                socket_name=ORIGIN_SOCKET,
                origin=True,
                runs_tasks=False,
                program=program,
            )
            self.runtime.start()
            self._supervisor = spawn_supervisor(
                local_nodes(self._directory, nodes), _machine.limited_environment(nodes)
            )
        except BaseException:
            _machine.remove_directory(self._directory)
            raise
        threading.Thread(target=self._watch, name="p2pscoop-watch", daemon=True).start()
        _engines.add(self)

    def _watch(self) -> None:
        self._supervisor.wait()
        if not self._stopped:
            self.pool.fail_all(
                self.pool.broken
                or BrokenExecutor("no node is left, nor anything that would start one: see the messages on stderr")
            )

    def finish(self) -> None:
        """Wait until all futures have ended, then stop everything. Not from the runtime's own threads."""
        self.pool.wait_until_idle()
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self.runtime.stop()
            stop_supervisor(self._supervisor)
            _machine.remove_directory(self._directory)
        _engines.discard(self)

    def finish_in_background(self) -> None:
        """As `finish`, but return at once."""
        threading.Thread(target=self.finish, name="p2pscoop-finish", daemon=True).start()


_engines: set[_Engine] = set()


def _path() -> bytes:
    return os.urandom(PATH_SIZE)


class Executor(concurrent.futures.Executor):
    """Runs calls on nodes of this machine, and calls that those make with `futures` as well.

    Args:
        max_workers: number of nodes  [default: `P2PSCOOP_NODES`, else the usable cores].
        initializer: called on each node before its first task. If it raises, the executor is broken.
        initargs: its positional arguments.

    Raises:
        ValueError: `max_workers` is not positive.
        TypeError: `initializer` is not callable.

    Nodes start with the first call that is submitted. What has to travel is pickled with cloudpickle, so that
    functions of `__main__`, lambdas and closures may be submitted, and no `if __name__ == "__main__"` is needed.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = _machine.node_count()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._initializer = initializer
        self._initargs = initargs
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._shut_down = False
        self._engine: _Engine | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` on a node.

        Raises:
            RuntimeError: the executor is shut down.
            concurrent.futures.BrokenExecutor: no node can run tasks any more.
        """
        with self._lock:
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._pid != os.getpid():
                raise ShutdownError("this Executor belongs to the parent of this forked process: make a new one")
            engine = self._engine or self._start()
            if engine.pool.broken is not None:
                raise engine.pool.broken
            return engine.pool.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """Like the built-in `map`, with the calls made on the nodes.

        Results come in the order of the items. Items are drawn as results are consumed, a bounded number ahead, so
        iterables may be infinite.

        Args:
            fn: called with one item of each iterable.
            iterables: as long as the shortest.
            timeout: seconds from this call after which `next` raises `TimeoutError` if its result is not there.
            chunksize: accepted for compatibility; nodes take as many calls at a time as is worth a message.

        Raises:
            ValueError: `chunksize` below 1.

        What `fn` raises, or an iterable, is raised at its place in the order.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = _Calls(self, fn, zip(*iterables), _AHEAD_PER_NODE * self._max_workers)  # noqa: B905  (as `map`)
        return calls.results(deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and stop the nodes when those that were submitted have ended.

        Args:
            wait: whether to return only when that is done.
            cancel_futures: whether to cancel the calls that no node has taken yet.
        """
        with self._lock:
            self._shut_down = True
            engine = self._engine
        if engine is None or self._pid != os.getpid():
            return
        if self._finalizer is not None:
            self._finalizer.detach()
        if cancel_futures:
            engine.pool.cancel_all()
        if wait and not engine.runtime.is_own_thread():
            engine.finish()
        else:
            engine.finish_in_background()

    def statistics(self) -> list[NodeStatistics]:
        """What each node has done since it started; that of this process, which runs no tasks, first."""
        engine = self._engine
        return [] if engine is None else engine.runtime.statistics()

    def _start(self) -> _Engine:
        engine = _Engine(self._max_workers, encode_program(self._initializer, self._initargs))
        self._engine = engine
        # An executor that is forgotten without a shutdown still has its futures to see to.
        self._finalizer = weakref.finalize(self, engine.finish_in_background)
        self._finalizer.atexit = False
        return engine


class _Calls:
    """The calls of one `map`, drawn and submitted as results are consumed."""

    def __init__(
        self, executor: Executor, fn: Callable[..., Any], source: Iterator[tuple[Any, ...]], ahead_max: int
    ) -> None:
        self._executor = executor
        self._fn = fn
        self._source: Iterator[tuple[Any, ...]] | None = source
        self._error: BaseException | None = None
        self._pending: deque[Future[Any]] = deque()
        self._ahead_max = ahead_max
        self._draw()

    def results(self, deadline: float | None) -> Generator[Any, None, None]:
        try:
            while self._pending:
                # Not kept in a variable: a result must not stay alive longer than its consumer wants it.
                yield _result(self._pending.popleft(), deadline)
                self._draw()
            if self._error is not None:
                raise self._error
        finally:
            for future in self._pending:
                future.cancel()

    def _draw(self) -> None:
        while self._source is not None and len(self._pending) < self._ahead_max:
            try:
                args = next(self._source)
            except StopIteration:
                self._source = None
            except Exception as error:
                # For the consumer, after the results of the items before it.
                self._source, self._error = None, error
            else:
                self._pending.append(self._executor.submit(self._fn, *args))


def _result(future: Future[Any], deadline: float | None) -> Any:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future


def _at_exit() -> None:
    for engine in list(_engines):
        with contextlib.suppress(subprocess.SubprocessError):
            engine.finish()


def _after_fork() -> None:
    _engines.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
