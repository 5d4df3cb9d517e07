"""A `concurrent.futures.Executor` whose tasks run on nodes that steal them from the process that submits.

The process that makes an `Executor` only submits: user code runs in the nodes, as users of process pools expect.
Any thread may use it. Its futures are `concurrent.futures.Future` objects.

Inside a task, an `Executor` is another way to submit to the nodes that are there already; so is one that came to
the task as an argument.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import logging
import operator
import os
import pickle
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any, ParamSpec, TypeVar

from p2pscoop import _machine
from p2pscoop._attachment import JOIN_S, Attachment, attachment, explain
from p2pscoop._calls import Calls, checked_size, is_sized
from p2pscoop._core.limits import Limits
from p2pscoop._future import PATH_SIZE
from p2pscoop._nested import NestedEngine, in_task
from p2pscoop._payload import encode_program
from p2pscoop._pool import Pool
from p2pscoop._process_config import ORIGIN_SOCKET, local_nodes
from p2pscoop._runtime import NodeStatistics, Runtime
from p2pscoop._session import stop_supervisor
from p2pscoop._supervisor import spawn_supervisor
from p2pscoop._timeouts import Limited, checked_timeout, with_timeout
from p2pscoop.errors import ShutdownError

__all__ = ["Executor", "executor_of_node"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("concurrent.futures")

_AHEAD_PER_NODE = 64
"""Calls of `map` under way for each node, beyond the one whose result is wanted next, if it has no known end."""


class _Engine:
    """Pool, runtime and supervisor of one executor. It outlives the executor until all its futures have ended."""

    def __init__(
        self, nodes: int, program: bytes, limits: Limits, attached: Attachment | None, *, initializes: bool
    ) -> None:
        self._nodes = nodes if attached is None else 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._directory = _machine.make_directory() if attached is None else None
        self.pool = Pool(
            lambda: self.runtime.feed(),
            lambda serial: self.runtime.settled_at_home(serial),
            self._stop,
            _path(),
            lambda: self.runtime.node.id,
            initializes=initializes,
        )
        try:
            self.runtime = Runtime(
                self.pool,
                name="executor",
                directory=self._directory,
                socket_name=ORIGIN_SOCKET,
                origin=True,
                runs_tasks=False,
                limits=limits,
                program=program,
                **({} if attached is None else _membership(attached)),
            )
            self.runtime.start()
            if self._directory is not None:
                self._supervisor = spawn_supervisor(
                    local_nodes(self._directory, nodes), _machine.limited_environment(nodes)
                )
                threading.Thread(target=self._watch, name="p2pscoop-watch", daemon=True).start()
            elif attached is not None and not self.pool.member.wait(JOIN_S):
                problem = explain(attached)
                self.runtime.stop()
                raise problem
        except BaseException:
            _machine.remove_directory(self._directory)
            raise
        _engines.add(self)

    @property
    def broken(self) -> Exception | None:
        """Why no task can run any more, or None."""
        return self.pool.broken

    @property
    def capacity(self) -> int:
        """How many nodes run tasks, or will when those that start, or start again, are there."""
        return max(self._nodes, self.runtime.size())

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Queue a call."""
        return self.pool.submit(fn, args, kwargs)

    def _stop(self, task: object) -> None:
        """Have a call that was given away interrupted, wherever it runs."""
        self.runtime.cancel(lambda handle: handle is task)

    def cancel_all(self) -> None:
        """Cancel what no node has taken."""
        self.pool.cancel_all()

    def statistics(self) -> list[NodeStatistics]:
        """Of all nodes, this one first."""
        return self.runtime.statistics()

    def _watch(self) -> None:
        assert self._supervisor is not None
        self._supervisor.wait()
        if not self._stopped:
            self.pool.fail_all(
                self.pool.broken
                or BrokenExecutor("no node is left, nor anything that would start one: see the messages on stderr")
            )

    def finish(self, *, wait_for_all: bool = True) -> None:
        """When all futures have ended, stop everything.

        Args:
            wait_for_all: whether to return only then. The runtime's own threads do not wait for themselves.
        """
        if not wait_for_all or self.runtime.is_own_thread():
            self.finish_in_background()
            return
        self.pool.wait_until_idle()
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self.runtime.stop()
            if self._supervisor is not None:
                stop_supervisor(self._supervisor)
            _machine.remove_directory(self._directory)
        _engines.discard(self)

    def finish_in_background(self) -> None:
        """As `finish`, but return at once."""
        threading.Thread(target=self.finish, name="p2pscoop-finish", daemon=True).start()


def _membership(attached: Attachment) -> dict[str, Any]:
    return {
        "seeds": attached.seeds,
        "tcp": (attached.listen, 0),
        "keys": attached.keys,
        "cluster": attached.cluster,
    }


_engines: set[_Engine] = set()


def _path() -> bytes:
    return os.urandom(PATH_SIZE)


class Executor(concurrent.futures.Executor):
    """Runs calls on nodes of this machine, and calls that those make with `futures` as well.

    Args:
        max_workers: number of nodes  [default: `P2PSCOOP_NODES`, else the usable cores].
        initializer: called on each node before its first task. If it raises, the executor is broken.
        initargs: its positional arguments.
        seed: HOST:PORT of a node of a standing cluster, or several; its nodes are used, and none started
            [default: `P2PSCOOP_SEED`, else nodes of one's own].
        key: text of the cluster's key, as `p2pscoop keygen` writes it  [default: as that command left it].
        retries: how often a call is started again when the node that has it dies, before it ends with
            `PoisonTaskError`. With 0, whatever a dead node had fails; the default bears nodes that are killed for
            other reasons.
        timeout: seconds that a call may take, from its start on a node; see `p2pscoop.with_timeout`, which gives
            single calls a limit. None: for ever. Of a `map` in chunks it is the limit of a chunk.

    Raises:
        ValueError: `max_workers` or `timeout` is not positive, or beyond all measure, or `retries` is negative.
            A seed or a key that cannot be used is one, too (`ConfigurationError`).
        TypeError: `max_workers` or `retries` is not an integer, `timeout` no number, `initializer` not callable.

    Nodes start with the first call that is submitted. Inside a task none start: calls go to those that are there,
    `max_workers` is ignored, and only the thread of the task may submit.

    What has to travel is pickled with cloudpickle, so that functions of `__main__`, lambdas and closures may be
    submitted, and no `if __name__ == "__main__"` is needed.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        seed: str | Sequence[str] | None = None,
        key: str | None = None,
        retries: int = Limits().deaths_max - 1,
        timeout: float | None = None,
    ) -> None:
        retries = operator.index(retries)
        if retries < 0:
            raise ValueError("retries must be >= 0")
        if max_workers is None:
            max_workers = _machine.node_count()
        else:
            max_workers = operator.index(max_workers)
            if max_workers <= 0:
                raise ValueError("max_workers must be greater than 0")
            if max_workers > _machine.NODES_MAX:
                raise ValueError(f"max_workers must be <= {_machine.NODES_MAX}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._timeout = None if timeout is None else checked_timeout(timeout)
        self._limited: weakref.ref[Limited[Any, Any]] | None = None
        self._attached = attachment(seed, key)
        self._nodes = max_workers
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._limits = Limits(deaths_max=retries + 1)
        self._token = os.urandom(PATH_SIZE)
        self._pid = os.getpid()
        # A collection of garbage inside it may run a `__del__` that comes back here.
        self._lock = threading.RLock()
        self._shut_down = False
        self._engine: _Engine | NestedEngine | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        _executors[self._token] = self

    def __reduce__(self) -> Any:
        """In a task, an executor that came with it submits to the nodes that are there."""
        return _executor_here, (self._token, self._timeout)

    @property
    def _max_workers(self) -> int:
        """How many nodes run tasks, or will. Under the name by which programs ask executors for it."""
        engine = self._engine
        return self._nodes if engine is None else engine.capacity

    @property
    def _broken(self) -> str | bool:
        """Why no task can run any more, or False. Under the name by which programs ask executors for it."""
        engine = self._engine
        return False if engine is None or engine.broken is None else str(engine.broken)

    @property
    def usable(self) -> bool:
        """Whether calls can be submitted: it is not shut down, nor broken, nor another process's."""
        return not (self._shut_down or self._broken or self._pid != os.getpid())

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` on a node.

        Raises:
            RuntimeError: the executor is shut down, or the interpreter is.
            concurrent.futures.BrokenExecutor: no node can run tasks any more.
            WrongThreadError: an executor made in a task is used by another thread than that of its node's tasks.
        """
        with self._lock:
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._pid != os.getpid():
                raise ShutdownError("this Executor belongs to the parent of this forked process: make a new one")
            engine = self._engine or self._start()
            broken = engine.broken
            if broken is not None:
                # A new one: each time that an exception is raised, its traceback grows.
                raise type(broken)(*broken.args)
            return engine.submit(fn if self._timeout is None else self._limit(fn, self._timeout), args, kwargs)

    def _limit(self, fn: Callable[..., Any], timeout: float) -> Callable[..., Any]:
        """The function with the limit of all calls: the same object as last time, so that it is pickled once."""
        limited = None if self._limited is None else self._limited()
        if limited is None or limited.func is not fn:
            limited = with_timeout(fn, timeout)
            self._limited = weakref.ref(limited)
        return limited

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Generator[T, None, None]:
        """Like the built-in `map`, with the calls made on the nodes; results in the order of the items.

        If one of the iterables has a length, all calls are submitted at once. Otherwise items are drawn as results
        are consumed, a bounded number ahead, so that iterables may be infinite.

        Args:
            fn: called with one item of each iterable.
            iterables: as long as the shortest.
            timeout: seconds from this call after which `next` raises `TimeoutError` if its result is not there.
            chunksize: items that travel together. Nodes take as many calls at a time as is worth a message, so
                this matters only for calls far below a millisecond.
            buffersize: calls (chunks, if `chunksize` is not 1) submitted whose results have not been consumed.

        Raises:
            TypeError: `chunksize` or `buffersize` is not an integer.
            ValueError: ... or below 1.

        What `fn` raises, or an iterable, is raised at its place in the order. What has not been started when the
        consumer stops is cancelled.
        """
        return self._map(fn, zip(*iterables), is_sized(iterables), timeout, chunksize, buffersize)  # noqa: B905

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Generator[T, None, None]:
        """As `map`, with all arguments of a call in one item: `fn(*item)`."""
        source = (tuple(each) for each in iterable)
        return self._map(fn, source, is_sized([iterable]), timeout, chunksize, buffersize)

    def map_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int | None = None,
    ) -> Generator[T, None, None]:
        """As `map`, but results come in the order in which they are ready. Items are always drawn as needed."""
        ahead_max = checked_size("buffersize", buffersize, None) or _AHEAD_PER_NODE * self._max_workers
        deadline = None if timeout is None else time.monotonic() + timeout
        return Calls(self, fn, zip(*iterables), ahead_max, in_order=False).results(deadline)  # noqa: B905

    def _map(
        self,
        fn: Callable[..., T],
        source: Iterator[tuple[Any, ...]],
        sized: bool,
        timeout: float | None,
        chunksize: int,
        buffersize: int | None,
    ) -> Generator[T, None, None]:
        size = checked_size("chunksize", chunksize, 1) or 1
        ahead_max = checked_size("buffersize", buffersize, None)
        if ahead_max is None and not sized:
            ahead_max = _AHEAD_PER_NODE * self._max_workers
        deadline = None if timeout is None else time.monotonic() + timeout
        return Calls(self, fn, source, ahead_max, chunksize=size).results(deadline)

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
            engine.cancel_all()
        engine.finish(wait_for_all=wait)

    def statistics(self) -> list[NodeStatistics]:
        """What each node has done since it started; that of this process first. Empty before the first call."""
        engine = self._engine
        return [] if engine is None else engine.statistics()

    def _start(self) -> _Engine | NestedEngine:
        if in_task():
            self._engine = NestedEngine(self._initializer, self._initargs, self._token)
            return self._engine
        engine = self._engine = _Engine(
            self._nodes,
            encode_program(self._initializer, self._initargs),
            self._limits,
            self._attached,
            initializes=self._initializer is not None,
        )
        # An executor that is forgotten without a shutdown still has its futures to see to.
        self._finalizer = weakref.finalize(self, engine.finish_in_background)
        self._finalizer.atexit = False
        return engine


_executors: weakref.WeakValueDictionary[bytes, Executor] = weakref.WeakValueDictionary()
"""The executors of this process by their tokens."""
_exiting = False


def _executor_here(token: bytes, timeout: float | None) -> Executor:
    """What an executor is where it has been unpickled: itself in its own process, else that of the node."""
    known = _executors.get(token)
    if known is None:
        if not in_task():
            raise pickle.UnpicklingError(
                "an Executor can be pickled for the tasks of p2pscoop only, and this process runs none"
            )
        known = executor_of_node()
        del _executors[known._token]
        known._token = token
        known._timeout = timeout
        _executors[token] = known
    return known


def executor_of_node() -> Executor:
    """An executor that submits to the scheduler of this process, in whose thread the caller is."""
    executor = Executor()
    executor._engine = NestedEngine(None, (), executor._token)
    return executor


def _at_exit() -> None:
    global _exiting
    _exiting = True
    for engine in list(_engines):
        with contextlib.suppress(subprocess.SubprocessError):
            engine.finish()


def _after_fork() -> None:
    _engines.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
