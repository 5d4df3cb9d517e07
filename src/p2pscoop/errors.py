"""Every exception that p2pscoop raises of its own.

    P2PScoopError
    ├── ConfigurationError (ValueError)       a setting or an argument that cannot be used
    ├── StartError                            local nodes could not be started
    ├── ShutdownError (RuntimeError)          used after shutdown, or in a forked child
    ├── WrongThreadError (RuntimeError)       `futures` used from a thread that is not its own
    ├── PayloadError
    │   ├── NotPicklableError (PicklingError) an argument, result or exception does not pickle
    │   ├── PayloadTooLargeError              ... or is larger than the limit
    │   ├── NotPortable (PicklingError)       a suspended coroutine has to stay where it is
    │   └── RestoreRefused (UnpicklingError)  ... or cannot go on here
    ├── TaskError
    │   ├── RemoteError                       the task raised something that could not travel
    │   ├── TaskExitError                     the task called `sys.exit`
    │   ├── TaskInterruptError                the task raised `KeyboardInterrupt` on another node
    │   ├── TaskTimeoutError (TimeoutError)   the task was not done in the time that it had
    │   └── PoisonTaskError (BrokenExecutor)  one node after the other died with the task
    ├── CodeMismatchError                     a node has another module of the same name
    ├── InitializerError (BrokenExecutor)     an `Executor`'s initializer raised
    ├── JoinRefusedError (BrokenExecutor)     a cluster did not let this node in
    ├── DiscoveryError                        nodes cannot be found on the local network
    └── ProtocolError
        ├── LocalProtocolError                this side asked the protocol for the impossible
        └── RemoteProtocolError               a peer sent something that no peer may send

An exception that a task raises reaches the caller as itself, with a `RemoteTraceback` as its cause.
Cancellation is `concurrent.futures.CancelledError`, a time-out is the built-in `TimeoutError`.
"""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor

__all__ = [
    "CodeMismatchError",
    "ConfigurationError",
    "DiscoveryError",
    "InitializerError",
    "JoinRefusedError",
    "LocalProtocolError",
    "NotPicklableError",
    "NotPortable",
    "P2PScoopError",
    "PayloadError",
    "PayloadTooLargeError",
    "PoisonTaskError",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "RemoteTraceback",
    "RestoreRefused",
    "ShutdownError",
    "StartError",
    "TaskCancelled",
    "TaskError",
    "TaskExitError",
    "TaskInterruptError",
    "TaskTimeoutError",
    "WrongThreadError",
]


class P2PScoopError(Exception):
    """Base of all the exceptions below.

    An exception that a task raises is not wrapped: it reaches the caller as itself.
    """


class ConfigurationError(P2PScoopError, ValueError):
    """A setting (environment variable, option or argument) has a value that cannot be used."""


class StartError(P2PScoopError):
    """The local nodes could not be started; the message says which step failed."""


class ShutdownError(P2PScoopError, RuntimeError):
    """The runtime is shut down, or belongs to the parent of this forked process."""


class WrongThreadError(P2PScoopError, RuntimeError):
    """`futures` was used from a thread other than the one that its node runs tasks in.

    Not raised by `Executor`, which may be used from any thread.
    """


class PayloadError(P2PScoopError):
    """Something that had to travel between nodes could not."""


class NotPicklableError(PayloadError, pickle.PicklingError):
    """An argument, a result or an exception of a task cannot be pickled.

    The message names the task and the path to the part that refuses. Not raised for a task that never
    leaves the node that submitted it: nothing of it is pickled.
    """


class PayloadTooLargeError(PayloadError):
    """A pickled argument or result is larger than the largest payload that nodes accept."""


class NotPortable(PayloadError, pickle.PicklingError):
    """A suspended coroutine cannot be pickled; the message says which part of it refuses.

    The coroutine itself is untouched. Not raised by the runtime: a task that is not portable stays on its node.
    """


class RestoreRefused(PayloadError, pickle.UnpicklingError):
    """A pickled coroutine cannot go on here; the message says why: damaged, another Python, other code.

    None of the coroutine's instructions has run. Not raised by the runtime, which lets it go on where it was.
    """


class TaskError(P2PScoopError):
    """A task ended in a way that its caller cannot be given as it was."""


class RemoteError(TaskError):
    """The task raised an exception that does not survive pickling.

    Attributes:
        type_name: qualified name of the original exception's class.
        traceback_text: the original traceback, formatted on the node that ran the task.
        repr_text: what `repr` said about the original exception.
    """

    def __init__(self, message: str, type_name: str = "", traceback_text: str = "", repr_text: str = "") -> None:
        super().__init__(message, type_name, traceback_text, repr_text)
        self.type_name = type_name
        self.traceback_text = traceback_text
        self.repr_text = repr_text

    def __str__(self) -> str:
        return str(self.args[0])


class TaskExitError(TaskError):
    """The task called `sys.exit` or raised `SystemExit`; the program that waits for it goes on.

    Attributes:
        code: what was given to `sys.exit`.
    """

    def __init__(self, message: str, code: object = None) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class TaskInterruptError(TaskError):
    """The task raised `KeyboardInterrupt` on a node that nobody interrupted.

    A real Ctrl-C in the main program is a plain `KeyboardInterrupt` there, never this.
    """


class TaskTimeoutError(TaskError, TimeoutError):
    """The task had a limit (`p2pscoop.task`, `Executor(timeout=...)`), and was not done when it ended.

    It has been interrupted, and what it had spawned is cancelled. The cause says where it was, if it could be
    interrupted. `Future.result(timeout)` raises a plain `TimeoutError` instead: the task goes on then.

    Attributes:
        timeout: seconds that it had.
    """

    def __init__(self, message: str, timeout: float = 0.0) -> None:
        super().__init__(message, timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        return str(self.args[0])


class PoisonTaskError(TaskError, BrokenExecutor):
    """One node after the other died while it had this task, which is therefore not run again.

    Other tasks are not affected; those that were with it on a node that died are run again.

    Attributes:
        nodes: names of the nodes that died, and of their hosts.
        deaths: of each, how it died and what it printed last to stderr, as far as that is known.
    """

    def __init__(self, message: str, nodes: tuple[str, ...] = (), deaths: tuple[str, ...] = ()) -> None:
        super().__init__(message, nodes, deaths)
        self.nodes = nodes
        self.deaths = deaths

    def __str__(self) -> str:
        return str(self.args[0])


class TaskCancelled(BaseException):
    """Raised inside a task that is cancelled while it runs: by `Future.cancel(running=True)`, or by its limit.

    In a coroutine it comes out of the `await` that the task waits in, in a plain function out of `result()` and
    the like, or out of whatever Python code it runs. It is no `Exception`, so that `except Exception` does not
    stop it, as with `asyncio.CancelledError`. Tasks clean up in `finally` blocks. Whoever waits for the task gets
    a `concurrent.futures.CancelledError` instead.
    """


class CodeMismatchError(P2PScoopError):
    """A node has a module of the same name as one of the program's own, with other content.

    It is either a file that an import finds on the node's machine, or a module of another program that the node
    runs tasks of. The message says where both are, and what to do. It is no `ImportError`, so that code which does
    without a module if it is not there does not run with the wrong one, or without it, on some of the nodes.
    """


class InitializerError(P2PScoopError, BrokenExecutor):
    """The initializer of an `Executor` raised on a node, so that no task can run."""


class JoinRefusedError(P2PScoopError, BrokenExecutor):
    """A member of the cluster refused this node; the message gives its reason."""


class DiscoveryError(P2PScoopError):
    """Multicast DNS is not possible on an interface; the message says why, and what to do.

    Not raised when nobody answers, nor for what others announce.
    """


class ProtocolError(P2PScoopError):
    """Base of the two sides of a broken protocol."""


class LocalProtocolError(ProtocolError):
    """This side tried something that the protocol does not allow in its present state: a bug here."""


class RemoteProtocolError(ProtocolError):
    """A peer sent bytes that are no valid message. The bytes are dropped, nothing was unpickled."""


class RemoteTraceback(Exception):
    """Cause of an exception that was raised on another node; its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text
