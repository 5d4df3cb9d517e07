"""The process that starts nodes and runs no user code.

It forwards what its nodes print, line by line with their names, restarts a node that dies, and sees to it that
none is left when it ends. It holds one end of a pipe to each node, its *tether*; when the supervisor is gone,
by whatever way, the pipe ends and the node goes.

`p2pscoop run` and `p2pscoop join` are supervisors. A plain script that uses `futures`, and an `Executor`, start
one as a process of their own: `python -m p2pscoop._supervisor`, configured through its stdin, which is its own
tether in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from p2pscoop import _machine
from p2pscoop._process_config import EXIT_FAILED, EXIT_LEFT, EXIT_REFUSED, EXIT_REPLACED, NodeConfig
from p2pscoop._shortage import advice

__all__ = ["LEAVE_GRACE_S", "Supervisor", "python_command", "spawn_supervisor"]

LEAVE_GRACE_S = 10.0
"""How long a node that was told to leave may take to finish what it runs."""
STOP_GRACE_S = 0.5
"""How long a node whose tether was cut may take to end by itself."""

_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 5.0
_STABLE_S = 1.0
"""A node that lived for so long had started well, whatever killed it then: its next death starts at the shortest
back-off again. Starting takes a quarter of this."""
_LAST_LINES_MAX = 8
_LAST_LINE_MAX = 300
"""Lines, and bytes of each, of a dead node's stderr that are kept for the error of a task that killed it."""
_EARLY_DEATHS_MAX = 8
"""After so many deaths in a row, each soon after the start, a node is given up."""


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in an interpreter like this one."""
    # -P: the working directory must not shadow modules, unless it does so here too.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return [sys.executable, *flags, "-P", "-m", module, *arguments]


class _Child:
    """One node, over all its incarnations."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.early_deaths = 0
        self.restart_at: float | None = None
        self.forwarders: list[threading.Thread] = []
        self.last_lines: deque[bytes] = deque(maxlen=_LAST_LINES_MAX)
        """The end of what the process printed to stderr."""


class Supervisor:
    """Keeps some nodes running.

    Args:
        configs: one for each node.
        environment: for the nodes.
        out: where their stdout goes.
        err: where their stderr and the supervisor's own messages go.
    """

    def __init__(
        self,
        configs: Sequence[NodeConfig],
        environment: Mapping[str, str],
        out: IO[bytes] | None = None,
        err: IO[bytes] | None = None,
    ) -> None:
        self._children = [_Child(config) for config in configs]
        self._environment = dict(environment)
        self._out = out or sys.stdout.buffer
        self._err = err or sys.stderr.buffer
        self._output_lock = threading.Lock()
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._leaving = False

    # ------------------------------------------------------------------------------------- running

    def start(self) -> None:
        """Start all nodes."""
        for child in list(self._children):
            self._start(child)

    def post(self, event: object) -> None:
        """Have `wait` return this. Any thread, signal handlers too."""
        self._events.put(event)

    def wait(self, *, for_ever: bool = False) -> object:
        """See to the nodes until something was posted, and return it.

        Args:
            for_ever: whether to wait on when no node runs, or will run, any more; if not, None is returned.
        """
        while for_ever or self._children or not self._events.empty():
            event = self._next_event()
            if isinstance(event, _Child):
                self._on_exit(event)
            elif event is not None:
                return event
            now = time.monotonic()
            for child in list(self._children):
                if child.restart_at is not None and child.restart_at <= now:
                    self._start(child)
        return None

    def leave(self) -> None:
        """Tell all nodes to finish what they run and go; `wait` returns None when they have."""
        self._leaving = True
        for child in list(self._children):
            if child.process is None:
                self._children.remove(child)
                continue
            assert child.process.stdin is not None
            with contextlib.suppress(OSError):
                child.process.stdin.write(b"leave\n")
                child.process.stdin.flush()

    def stop(self) -> None:
        """Cut all tethers, and kill what does not end by itself. When this returns, no node is left."""
        self._leaving = True
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + STOP_GRACE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in self._children:
            for thread in child.forwarders:
                # A grandchild may hold the pipe open: do not wait for that.
                thread.join(STOP_GRACE_S)
        self._children.clear()

    def relay(self, line: bytes, *, error: bool) -> None:
        """Print a line of somebody else's, to stdout or stderr, as it is."""
        self._write(self._err if error else self._out, line if line.endswith(b"\n") else line + b"\n")

    def say(self, text: str) -> None:
        """A message of the supervisor itself."""
        self._write(self._err, f"p2pscoop: {text}\n".encode())

    # ------------------------------------------------------------------------------------ the nodes

    def _start(self, child: _Child) -> None:
        child.restart_at = None
        child.started_at = time.monotonic()
        child.last_lines.clear()
        try:
            process = subprocess.Popen(
                python_command("p2pscoop._node"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                # A Ctrl-C at the terminal is for the supervisor, which decides what it means to the nodes.
                start_new_session=True,
            )
        except (OSError, MemoryError) as error:
            self._on_no_start(child, error)
            return
        child.process = process
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # It died at once: seen as its exit.
            process.stdin.write(child.config.to_line())
            process.stdin.flush()
        label = f"[{child.config.name}] ".encode()
        child.forwarders = [
            threading.Thread(target=self._forward, args=(source, target, label, last_lines), daemon=True)
            for source, target, last_lines in (
                (process.stdout, self._out, None),
                (process.stderr, self._err, child.last_lines),
            )
        ]
        for thread in child.forwarders:
            thread.start()
        threading.Thread(target=self._await_exit, args=(child, process), daemon=True).start()

    def _on_no_start(self, child: _Child, error: Exception) -> None:
        """There is no process: what is missing may be there later, but not for ever."""
        child.early_deaths += 1
        problem = f"node {child.config.name} cannot be started: {advice(error) or error}"
        if child.early_deaths > _EARLY_DEATHS_MAX:
            self.say(f"{problem}; given up")
            self._children.remove(child)
            self.post_exit(EXIT_FAILED)
            return
        pause = self._pause_s(child)
        child.restart_at = time.monotonic() + pause
        if child.early_deaths == 1:
            self.say(f"{problem}; trying again, {_EARLY_DEATHS_MAX} times")

    def _pause_s(self, child: _Child) -> float:
        return min(_BACKOFF_MIN_S * 2.0 ** max(0, child.early_deaths - 1), _BACKOFF_MAX_S)

    def _await_exit(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for thread in child.forwarders:
            thread.join(STOP_GRACE_S)
        self._events.put(child)

    def _next_event(self) -> object:
        restarts = [child.restart_at for child in self._children if child.restart_at is not None]
        timeout = max(0.0, min(restarts) - time.monotonic()) if restarts else None
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _on_exit(self, child: _Child) -> None:
        process, child.process = child.process, None
        if child not in self._children or process is None:
            return
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        code = process.returncode
        if self._leaving or code in (EXIT_LEFT, EXIT_REFUSED, EXIT_FAILED):
            self._children.remove(child)
            self.post_exit(code)
            return
        if code == EXIT_REPLACED:
            child.config = replace(child.config, predecessor_pid=0, predecessor_end="")
            self._start(child)
            return
        early = time.monotonic() - child.started_at < _STABLE_S
        child.early_deaths = child.early_deaths + 1 if early else 0
        died = f"node {child.config.name} (pid {process.pid}) {_describe(code)}"
        # The next one tells those whose tasks it had.
        child.config = replace(
            child.config,
            predecessor_pid=process.pid,
            predecessor_end=_describe(code) + _quote(child.last_lines),
        )
        if child.early_deaths > _EARLY_DEATHS_MAX:
            self.say(f"{died}, for the {child.early_deaths}th time soon after its start: given up")
            self._children.remove(child)
            self.post_exit(code)
            return
        pause = self._pause_s(child)
        child.restart_at = time.monotonic() + pause
        self.say(f"{died}; starting it again in {pause:.1f} s")

    def post_exit(self, code: int) -> None:
        """Remember the worst way in which a node ended for good."""
        if code not in (EXIT_LEFT, 0) and self.exit_code == 0:
            self.exit_code = code

    exit_code = 0
    """0 if all nodes that ended for good left in peace; else the status of the first that did not."""

    def _forward(
        self, source: IO[bytes], target: IO[bytes], label: bytes, last_lines: deque[bytes] | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in source:
                if last_lines is not None:
                    last_lines.append(line[:_LAST_LINE_MAX])
                self._write(target, label + line + (b"" if line.endswith(b"\n") else b"\n"))

    def _write(self, target: IO[bytes], data: bytes) -> None:
        with self._output_lock, contextlib.suppress(OSError, ValueError):
            target.write(data)
            target.flush()


def _describe(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _quote(lines: Iterable[bytes]) -> str:
    """What a process printed last, to be put behind how it ended."""
    text = "".join(f"\n    {line.decode(errors='replace').rstrip()}" for line in lines)
    return f"; the last that it printed to stderr:{text}" if text else ""


# ------------------------------------------------------------------- a supervisor of one's own


def spawn_supervisor(configs: Sequence[NodeConfig], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a supervisor process for these nodes. It stops them, and ends, when its stdin is closed."""
    process = subprocess.Popen(
        python_command("p2pscoop._supervisor"), stdin=subprocess.PIPE, start_new_session=True
    )
    document = {"nodes": [config.to_line().decode() for config in configs], "environment": dict(environment)}
    assert process.stdin is not None
    process.stdin.write(json.dumps(document).encode() + b"\n")
    process.stdin.flush()
    return process


def main() -> None:
    """Supervise the nodes that stdin tells of, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tether = sys.stdin.buffer
    document: dict[str, Any] = json.loads(tether.readline())
    configs = [NodeConfig.from_line(line.encode()) for line in document["nodes"]]
    supervisor = Supervisor(configs, document["environment"])

    def watch() -> None:
        tether.read()
        supervisor.post("untethered")

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: supervisor.post("terminated"))
    supervisor.start()
    supervisor.wait()
    supervisor.stop()
    for directory in {config.directory for config in configs}:
        _machine.remove_directory(directory)
    # The watching thread may still be reading; there is nothing to take down.
    os._exit(0)


if __name__ == "__main__":
    main()
