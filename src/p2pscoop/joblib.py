"""A backend for joblib: `import p2pscoop.joblib` registers it as "p2pscoop".

    import joblib
    import p2pscoop.joblib

    with joblib.parallel_config(backend="p2pscoop"):
        ...  # whatever uses joblib.Parallel: scikit-learn's searches, ensembles and cross-validations

In a plain program the calls go to one executor, which starts nodes at its first call and is kept for the next. In
a task, and in the main program when `futures` runs already, they go to the nodes that are there; so a `Parallel`
inside a `Parallel` spreads over the same nodes, and adds none.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib
import joblib.parallel
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from p2pscoop._nested import at_home
from p2pscoop.errors import ConfigurationError
from p2pscoop.executor import Executor, executor_of_node

__all__ = ["P2PScoopBackend"]


class P2PScoopBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """What joblib calls a backend. Made by joblib, from the arguments of `parallel_config` and `Parallel`.

    Args:
        executor: where the calls go  [default: see above].
        nesting_level: how many `Parallel` there are around it.
        inner_max_num_threads: threads that numeric libraries may use in each node; needs threadpoolctl
            [default: the cores of the machine divided by its nodes].

    Raises:
        TypeError: `executor` is no `p2pscoop.Executor`.
        ConfigurationError: `inner_max_num_threads` without threadpoolctl.
    """

    default_n_jobs = -1
    supports_inner_max_num_threads = True
    supports_return_generator = True
    supports_timeout = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self,
        executor: Executor | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **backend_kwargs
        )
        if executor is not None and not isinstance(executor, Executor):
            raise TypeError(f"executor must be a p2pscoop.Executor, not {type(executor).__qualname__}")
        if inner_max_num_threads is not None:
            _check_threadpoolctl()
        self._given = executor
        self._of_node: Executor | None = None
        self._futures: set[Future[Any]] = set()

    def __reduce__(self) -> Any:
        """To nested calls, on other nodes. There, the executor is that of the node."""
        return P2PScoopBackend, (None, self.nesting_level, self.inner_max_num_threads)

    @property
    def supports_retrieve_callback(self) -> bool:
        """Whether results are noted by the thread that brings them.

        Where tasks run there is no such thread, and who waits must let its node run tasks: joblib then asks
        `retrieve_result`, which does.
        """
        return not at_home()

    @property
    def _executor(self) -> Executor:
        if self._given is not None:
            return self._given
        if not at_home():
            return _shared_executor()
        if self._of_node is None:
            self._of_node = executor_of_node()
        return self._of_node

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls to have under way: `n_jobs`, where -1 means all nodes, -2 all but one, and so on.

        Raises:
            ValueError: `n_jobs` is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, self._executor._max_workers + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Called before a `Parallel` starts. What concerns shared memory and processes is not for this backend."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        if not self.supports_retrieve_callback:
            # The order of results that are asked for one after the other is that of the calls.
            parallel.return_ordered = True
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None) -> Any:
        """Queue a batch of calls."""
        future = self._executor.submit(_run, func, self.inner_max_num_threads)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """The result of a batch that has ended."""
        return future.result()

    def retrieve_result(self, future: Future[Any], timeout: float | None = None) -> Any:
        """Wait for a batch; the node runs tasks meanwhile."""
        # joblib keeps the settings in force in a variable of the thread, in which other tasks may run now.
        settings = joblib.parallel._backend
        config = settings.__dict__.pop("config", None)
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.done():
                raise  # The task's own.
            raise multiprocessing.TimeoutError from None  # As joblib's own backends.
        finally:
            settings.__dict__.pop("config", None)
            if config is not None:
                settings.config = config

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what no node has started. What runs cannot be stopped; nobody waits for it."""
        del ensure_ready
        for future in list(self._futures):
            future.cancel()

    def terminate(self) -> None:
        """Called when a `Parallel` has ended. The nodes are kept for the next."""
        self.reset_batch_stats()

    def get_nested_backend(self) -> tuple[P2PScoopBackend, int]:
        """What a `Parallel` inside a call uses: all nodes, too."""
        level = (self.nesting_level or 0) + 1
        return P2PScoopBackend(self._given, level, self.inner_max_num_threads), -1


_shared: Executor | None = None
_lock = threading.Lock()


def _shared_executor() -> Executor:
    """The executor of this process for all calls that name no other; a new one if the last was given up."""
    global _shared
    with _lock:
        if _shared is None or not _shared.usable:
            _shared = Executor()
        return _shared


def _check_threadpoolctl() -> None:
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        raise ConfigurationError("inner_max_num_threads needs threadpoolctl: pip install threadpoolctl") from None


_limits: Any = None


def _run(batch: Callable[[], Any], threads_max: int | None) -> Any:
    """On a node: one batch."""
    global _limits
    if _limits is not None:
        # Of a batch before this one. Not undone when that ended: batches overlap when they wait.
        _limits.restore_original_limits()
        _limits = None
    if threads_max is not None:
        from threadpoolctl import threadpool_limits

        _limits = threadpool_limits(limits=threads_max)
    return batch()


joblib.register_parallel_backend("p2pscoop", P2PScoopBackend)
