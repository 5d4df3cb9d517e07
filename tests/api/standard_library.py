"""The standard library's own tests of executors, applied to `p2pscoop.Executor`.

A program of its own, because the tests are in CPython's `test` package in this form from 3.13 on, and this
project's tests are run by older interpreters too:

    python3.13 -m tests.api.standard_library [name of a test] ...

Every mixin that the library applies to its executors is applied to ours. A test that does not apply is listed
below with the reason, and is skipped; one that is listed but no longer there is an error.
"""

from __future__ import annotations

import re
import sys
import unittest
from concurrent.futures import BrokenExecutor
from pickle import PicklingError
from typing import Any
from unittest import mock

from test import support
from test.support.script_helper import assert_python_ok
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
)
from test.test_concurrent_futures.util import ExecutorMixin, create_executor_tests

import p2pscoop
from p2pscoop.errors import TaskError, TaskExitError

OWN_PROCESSES = "looks into the pool's own processes, threads or queues (`_processes`, `_call_queue`, ...)"
ONLY_LOCAL = "synchronises tasks through primitives of multiprocessing, which only children of one process share"
NOT_APPLICABLE = {
    # test_process_pool
    "test_killed_child": "a node that is killed is replaced, and its tasks run again: nothing is broken",
    "test_traceback": "the cause is p2pscoop.errors.RemoteTraceback: tested in tests/api/test_executor.py",
    "test_ressources_gced_in_workers": ONLY_LOCAL,
    "test_saturation": ONLY_LOCAL,
    "test_idle_process_reuse_one": OWN_PROCESSES + "; nodes start together, because they steal from each other",
    "test_idle_process_reuse_multiple": OWN_PROCESSES + "; nodes start together",
    "test_max_tasks_per_child": "there is no max_tasks_per_child",
    "test_max_tasks_per_child_defaults_to_spawn_context": "there is no max_tasks_per_child",
    "test_max_tasks_early_shutdown": "there is no max_tasks_per_child",
    "test_python_finalization_error": "replaces the function by which the pool's own threads start",
    "test_max_workers_too_large": "about Windows, where p2pscoop does not run",
    # test_shutdown
    "test_processes_terminate": OWN_PROCESSES,
    "test_context_manager_shutdown": OWN_PROCESSES + "; in our own words in tests/api/test_executor.py",
    "test_del_shutdown": OWN_PROCESSES + "; in our own words in tests/api/test_executor.py",
    "test_shutdown_no_wait": OWN_PROCESSES + "; in our own words in tests/api/test_executor.py",
    "test_cancel_futures": (
        "cancels before the first node is up, when all are still to be cancelled; "
        "in our own words in tests/api/test_executor.py"
    ),
    # test_deadlock
    "test_shutdown_deadlock_pickle": OWN_PROCESSES + "; in our own words in tests/pickle/test_crash_table.py",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces parts of the process pool",
}
DIFFERENT_ERRORS = {
    # The library breaks the whole pool here. Ours fails the one call, with an error that says why.
    "test_exit_at_task_unpickle": TaskError,
    "test_error_at_task_unpickle": TaskError,
    "test_error_during_result_unpickle_in_result_handler": TaskError,
    "test_exit_during_result_unpickle_in_result_handler": TaskError,
    # `sys.exit` of a task must not end the program that waits for it, which `SystemExit` would.
    "test_exit_during_func_exec_on_worker": TaskExitError,
    "test_exit_during_result_pickle_on_worker": PicklingError,
}
LABEL = re.compile(rb"^\[n\d+\] ", re.MULTILINE)


class Executor(p2pscoop.Executor):
    """Ours, without the argument that only process pools have. The tests use its name in programs."""

    def __init__(self, *args: Any, mp_context: None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class P2PScoopMixin(ExecutorMixin):
    executor_type = Executor
    worker_count = 4

    def get_context(self) -> None:
        return None

    def _check_crash(self, error: type[BaseException], *args: Any, **kwargs: Any) -> None:
        super()._check_crash(DIFFERENT_ERRORS.get(self._testMethodName, error), *args, **kwargs)


class DeadlockTest(P2PScoopMixin, test_deadlock.ExecutorDeadlockTest):
    """In this order: ours chooses the error that the library's looks for."""


def run_program(*arguments: str, **settings: Any) -> tuple[int, bytes, bytes]:
    """A program of the library's tests, with our executor; without the names before what nodes print."""
    *options, text = arguments
    program = text.replace("from concurrent.futures import Executor", "from p2pscoop import Executor")
    assert program != text
    code, out, err = assert_python_ok(*options, program, **settings)
    return code, LABEL.sub(b"", out), err


MIXINS = [
    test_process_pool.ProcessPoolExecutorTest,
    test_as_completed.AsCompletedTests,
    test_wait.WaitTests,
    test_init.InitializerMixin,
    test_init.FailingInitializerMixin,
    test_shutdown.ProcessPoolShutdownTest,
]


def make_cases() -> list[type[unittest.TestCase]]:
    """A test case for each of the library's mixins."""
    space: dict[str, Any] = {"__name__": __name__}
    for mixin in MIXINS:
        create_executor_tests(space, mixin, executor_mixins=(P2PScoopMixin,))
    create_executor_tests(space, DeadlockTest, executor_mixins=(P2PScoopMixin,))
    cases = [each for each in space.values() if isinstance(each, type)]
    missing = set(NOT_APPLICABLE)
    for case in cases:
        for name in unittest.TestLoader().getTestCaseNames(case):
            if name in NOT_APPLICABLE:
                missing.discard(name)
                setattr(case, name, unittest.skip(NOT_APPLICABLE[name])(getattr(case, name)))
    if missing:
        raise SystemExit(f"the library has no such tests any more: {sorted(missing)}")
    return cases


def main() -> int:
    """Run all of them, or those named. Status 0: all that apply passed, and left nothing behind."""
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in sys.argv[1:]] or None
    suite = unittest.TestSuite(map(loader.loadTestsFromTestCase, make_cases()))
    with (
        mock.patch.object(test_deadlock, "BrokenProcessPool", BrokenExecutor),
        mock.patch.object(test_shutdown, "assert_python_ok", run_program),
    ):
        result = unittest.TextTestRunner(verbosity=2).run(suite)
    if support.environment_altered:
        print("a test left a thread or a process behind", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
