"""Constants that all nodes of a program share: `from p2pscoop import shared`.

    shared.set_const(weights=numpy.load("weights.npy"), score=lambda x: ...)

    def task(x):
        return shared.get_const("score")(shared.get_const("weights"), x)

A constant is defined once, by the main program or by any task, and never changed. When `set_const` returns, the
origin has it: whatever asks for it from then on, on any node, also on one that joins later, gets it. It travels to
a node when a task there first asks for it, once, however many tasks use it. Large ones are passed on by the nodes
that have them already. Arrays come without a copy, as read-only views of what was received.

What is shared is a copy, made by pickle when the constant is defined; only the process that defined it has the
object itself. A function or a lambda of the main program goes by value, one of a module by name.
"""

from __future__ import annotations

import math
import os
import time
from functools import partial
from typing import Any

from p2pscoop import _local
from p2pscoop._constants import Answer, AnswerKind, Constants, define, fetch, have, read_answer
from p2pscoop._core.ids import NodeId
from p2pscoop._future import DONE, Future, make_future, program_of
from p2pscoop._home import Home
from p2pscoop._payload import decode_constant, encode_constant
from p2pscoop._runtime import NO_QUESTION
from p2pscoop.errors import ConfigurationError, PayloadTooLargeError, ShutdownError

__all__ = ["getConst", "get_const", "setConst", "set_const"]

_RESEND_S = 1.0
"""First repetition of a question. Doubles up to `_RESEND_MAX_S`."""
_RESEND_MAX_S = 8.0
_PATIENCE_S = 15.0
"""How long another node than the origin may take to send a constant."""
_RETRY_S = 0.005
"""First pause before asking again for what is not defined, or not to be had yet. Doubles up to `_RETRY_MAX_S`."""
_RETRY_MAX_S = 0.25
_TOKEN_SIZE = 8


def set_const(**constants: Any) -> None:
    """Define constants, all of them or none; on return every node can get them.

    Args:
        constants: by name. None of the names may be in use already.

    Raises:
        TypeError: a constant of that name exists.
        NotPicklableError: a value does not pickle.
        PayloadTooLargeError: a value is larger than the limit of 2 GiB.
        ConfigurationError: more constants than 10,000 were defined.
        ShutdownError: the origin is gone.
    """
    home = _home()
    limits = home.runtime.limits
    pickles = {name: encode_constant(name, value) for name, value in constants.items()}
    if sum(map(len, pickles.values())) > limits.message_max - limits.header_max:
        raise PayloadTooLargeError(
            f"{', '.join(pickles)}: {sum(map(len, pickles.values()))} bytes when pickled, the limit is "
            f"{limits.message_max - limits.header_max}; share a file name instead"
        )
    origin = _origin(home)
    token = os.urandom(_TOKEN_SIZE)
    if origin == home.runtime.node.id:
        answer: Answer | None = _constants(home).define(token, pickles)
    else:
        answer = _ask(home, origin, define(token, pickles))
    if answer is None:
        raise ShutdownError("the origin is gone: nothing can be shared any more")
    if answer.kind == AnswerKind.EXISTS:
        raise TypeError(f"the constant {answer.content!r} exists already: a constant is defined once")
    if answer.kind == AnswerKind.FULL:
        raise ConfigurationError("too many constants: put them into one dictionary, and share that")
    _constants(home).values.update(constants)


def get_const(name: str, timeout: float | None = 0.1) -> Any:
    """The constant of this name.

    Args:
        name: as it was given to `set_const`.
        timeout: seconds to wait at most for it to be defined; None or a negative number: no limit. The time that
            it takes to come here does not count. Meanwhile the node runs other tasks.

    Returns:
        The value; None if it is not defined in time.

    Raises:
        ShutdownError: the origin is gone.
    """
    home = _home()
    values = _constants(home).values
    # For a large share of all calls that is all.
    if name in values:
        return values[name]
    deadline = math.inf if timeout is None or timeout < 0 else time.monotonic() + timeout
    pause = _RETRY_S
    while True:
        answer = _get(home, name)
        if name in values:
            return values[name]
        now = time.monotonic()
        # What exists, but cannot be had at the moment, is waited for.
        if answer.kind == AnswerKind.UNDEFINED and now >= deadline:
            return None
        until = now + pause
        _rest(home, until if answer.kind == AnswerKind.BUSY else min(until, deadline))
        pause = min(2 * pause, _RETRY_MAX_S)


setConst = set_const  # noqa: N816  (the name in SCOOP)
getConst = get_const  # noqa: N816  (the name in SCOOP)


def _home() -> Home:
    scheduler = _local.current()
    scheduler.check_thread()
    assert isinstance(scheduler.hooks, Home)
    return scheduler.hooks


def _program(home: Home) -> NodeId:
    """The origin whose program the running task belongs to: it decides what is defined."""
    return program_of(home.scheduler.task, home.runtime.node.id)


def _constants(home: Home) -> Constants:
    return home.runtime.constants(_program(home))


def _origin(home: Home) -> NodeId:
    origin, node = _program(home), home.runtime.node
    if origin != node.id and not node.membership.is_alive(origin):
        raise ShutdownError("the origin is gone: nothing can be shared any more")
    return origin


_fetches: dict[tuple[NodeId, str], Future[Any]] = {}
"""What tasks of this node are asking for: others wait for the same answer. Only for the home thread."""


def _get(home: Home, name: str) -> Answer:
    """Bring a constant here, if it is defined and can be had now. What came of it."""
    key = _program(home), name
    running = _fetches.get(key)
    if running is not None and running._scheduler is home.scheduler:
        return running.result()  # type: ignore[no-any-return]  # it is what is set below
    fetching = _fetches[key] = _promise(home)
    answer = Answer(AnswerKind.BUSY)  # For those who wait, should this end by an exception.
    try:
        answer = _fetch(home, name)
        if answer.kind == AnswerKind.VALUE:
            _constants(home).values[name] = decode_constant(answer.content)
    finally:
        del _fetches[key]
        home.scheduler.end(fetching, DONE, Answer(answer.kind))
    return answer


def _fetch(home: Home, name: str) -> Answer:
    constants = _constants(home)
    data = constants.pickle_of(name)
    if data is not None:
        return Answer(AnswerKind.VALUE, data)
    origin = _origin(home)
    if origin == home.runtime.node.id:
        return Answer(AnswerKind.UNDEFINED)
    answer = _ask(home, origin, fetch(name, directly=False))
    if answer is not None and answer.kind == AnswerKind.ELSEWHERE:
        answer = _ask(home, answer.content, fetch(name, directly=True), patience_s=_PATIENCE_S)
        if answer is None or answer.kind != AnswerKind.VALUE:
            # It is gone, or cannot be reached from here.
            answer = _ask(home, origin, fetch(name, directly=True))
    if answer is None:
        raise ShutdownError("the origin is gone: nothing that is shared can be had any more")
    if answer.kind == AnswerKind.VALUE and constants.is_large(answer.content):
        constants.keep(name, answer.content)
        home.runtime.ask(origin, NO_QUESTION, origin + have(name))
    return answer


def _ask(home: Home, peer: NodeId, question: bytes, *, patience_s: float = math.inf) -> Answer | None:
    """Ask a node until it answers; None if it is gone, or has no answer in time. The node runs tasks meanwhile."""
    runtime, scheduler = home.runtime, home.scheduler
    reply = _promise(home)
    query = runtime.question(lambda data: scheduler.call_soon(partial(scheduler.end, reply, DONE, data)))
    give_up_at = time.monotonic() + patience_s
    pause = _RESEND_S
    try:
        while runtime.node.membership.is_alive(peer) and time.monotonic() < give_up_at:
            runtime.ask(peer, query, _program(home) + question)
            try:
                return read_answer(reply.result(pause))
            except TimeoutError:
                pause = min(2 * pause, _RESEND_MAX_S)
        return None
    finally:
        runtime.forget_question(query)


def _promise(home: Home) -> Future[Any]:
    """A future that is no task's."""
    future: Future[Any] = make_future(home.scheduler, None, (), {}, home.scheduler.task, 0)
    future.claim()
    return future


def _rest(home: Home, until: float) -> None:
    while home.scheduler.park(until):
        pass
