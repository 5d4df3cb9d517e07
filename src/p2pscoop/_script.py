"""The origin of `p2pscoop run`: the process in which the script runs, `python -m p2pscoop._script`.

It has the terminal, or whatever stdin, stdout and stderr are, to itself, like a script that Python runs. The
launcher tells it, through a descriptor that one environment variable names, where to listen; the end of that
file means that the launcher is gone: it is the tether.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import types
from typing import IO

from p2pscoop import _machine, _session
from p2pscoop._attachment import Attachment
from p2pscoop._process_config import EXIT_UNREACHABLE, ORIGIN_SOCKET, ORIGIN_VARIABLE, OriginConfig
from p2pscoop._security import ClusterKey

__all__ = ["main"]

_POLL_S = 0.01


def main() -> None:
    """Run the script of the command line as `__main__`."""
    descriptor = int(os.environ.pop(ORIGIN_VARIABLE))
    os.set_inheritable(descriptor, False)
    tether = os.fdopen(descriptor, "rb", buffering=0)
    config = OriginConfig.from_line(tether.readline())
    threading.Thread(target=_watch, args=(tether, config.directory), name="p2pscoop-tether", daemon=True).start()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    if config.log_level != logging.WARNING:
        _log(config.log_level)
    keys = [ClusterKey.from_text(text) for text in config.keys]
    session = _session.open_session(
        config.directory, tcp=config.listen, keys=keys, cluster=config.cluster, own=False
    )
    if config.shared:
        seed = f"ipc://{config.directory}/{ORIGIN_SOCKET}"
        listen = None if config.listen is None else config.listen[0]
        session.shared = Attachment(
            (seed,), listen, tuple(keys), config.cluster, config.directory, config.spare_port
        )
    if not _gathered(session, config):
        sys.exit(EXIT_UNREACHABLE)
    profile = None
    if config.profile is not None:
        from p2pscoop._profile import NodeProfile

        profile = NodeProfile(session.home.scheduler, config.profile, session.home.runtime.name)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = module
    try:
        with open(script, "rb") as file:
            source = file.read()
        if b"\0" in source:  # `compile` would not say where.
            raise SyntaxError("there are null bytes in it, so it is not Python", (script, None, None, None))
        code = compile(source, script, "exec")
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        session.failed = True
        # As the interpreter would have done, without the frame that is not the script's.
        frames = error.__traceback__
        error = error.with_traceback(frames.tb_next if frames is not None else None)
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            _die_of_interrupt(session)
        sys.exit(1)
    finally:
        if profile is not None:
            if not session.failed:
                _session.stop(wait=True)  # What the script has not waited for belongs to it.
            profile.save()


def _gathered(session: _session.Session, config: OriginConfig) -> bool:
    """Wait for the nodes that have to be there first. Whether they came."""
    runtime, until = session.home.runtime, time.monotonic() + config.patience_s
    # One that this node knows need not know yet that it was let in; one that answers does.
    while runtime.size() < config.expects or (config.expects and len(runtime.statistics()) < config.expects):
        if time.monotonic() > until:
            found = f"of {config.expects} nodes {runtime.size()} were there after {config.patience_s:.0f} s"
            print(f"p2pscoop: {found}, and nothing was run: what others printed says why", file=sys.stderr)
            return False
        time.sleep(_POLL_S)
    return True


def _log(level: int) -> None:
    """Show what the package logs, without touching what the script does with `logging`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("p2pscoop")
    logger.setLevel(level)
    logger.addHandler(handler)


def _die_of_interrupt(session: _session.Session) -> None:
    """End as a script does that Ctrl-C ends: by the signal, so that shells see it."""
    session.close(wait=False)
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _watch(tether: IO[bytes], directory: str) -> None:
    tether.read(1)
    # The launcher is gone, and with it whoever would see to the nodes, and clean up.
    _machine.remove_directory(directory)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
