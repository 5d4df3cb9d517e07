"""A suspended coroutine becomes bytes, and goes on elsewhere. In pure Python, without help of the coroutine.

    captured = capture(coroutine)        # reads its frames, and those of all that it awaits
    data = captured.dumps()
    copy = restore(data)                 # in another process: stands where the original stood
    captured.discard()                   # when the copy is known to stand there

Decides nothing about when and where to; see README.md in this directory for how, and why it is safe. A low
layer: it knows nothing of tasks, futures and nodes.
"""

from __future__ import annotations

from p2pscoop._continuation.bytecode import unsupported
from p2pscoop._continuation.capture import Captured, capture
from p2pscoop._continuation.discard import HUSKS_MAX, husks
from p2pscoop._continuation.pickling import Pickler
from p2pscoop._continuation.restore import Unpickler, restore

__all__ = ["HUSKS_MAX", "Captured", "Pickler", "Unpickler", "capture", "husks", "restore", "unsupported"]
