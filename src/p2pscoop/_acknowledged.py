"""Whether the process at the other end of a connection lives, although it says nothing.

C code that holds the interpreter's lock silences a node, for minutes perhaps, and so does SIGSTOP. The kernel of
its machine acknowledges what is sent to it all the same, as long as the process has the socket; when the process
ends, it closes the connection. A machine that has vanished, or a cut, acknowledges nothing. So what this machine's
kernel knows of a connection over which something was sent lately tells silence from absence, also from afar.

Linux says it in `TCP_INFO`. NNG does not hand out the descriptors of its connections: they are looked up by their
ports among those of this process, only for peers that are silent.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

__all__ = ["is_acknowledged"]

_ESTABLISHED = 1
_TCP_INFO = struct.Struct("=B23xI28xI")
"""State, segments on their way, and milliseconds since the last acknowledgement: Linux, since 2.4."""


def is_acknowledged(own_port: int, peer_port: int, within_s: float) -> bool:
    """Whether all that was sent over a TCP connection of this process was acknowledged, the last of it lately.

    Args:
        own_port: of this side.
        peer_port: of the other side.
        within_s: what counts as lately.
    """
    if sys.platform != "linux":
        return False
    for name in os.listdir("/proc/self/fd"):
        try:
            # One's own: what is behind the other may become something else meanwhile.
            descriptor = os.dup(int(name))
        except OSError:
            continue
        try:
            held = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)  # It is no socket.
            continue
        with held:
            try:
                if held.getsockname()[1] != own_port or held.getpeername()[1] != peer_port:
                    continue
                info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                state, under_way, quiet_ms = _TCP_INFO.unpack(info)
            except (OSError, IndexError, struct.error):
                continue  # Of another kind.
        return bool(state == _ESTABLISHED and under_way == 0 and quiet_ms < within_s * 1000)
    return False
