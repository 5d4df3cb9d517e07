"""An interactive shell with nodes behind it.

    p2pscoop run -n 4 docs/examples/shell.py
    >>> list(futures.map(lambda x: x * x, range(10)))

Plain `python` does as well: the first use of `futures` starts nodes.
"""

from __future__ import annotations

import code

from p2pscoop import futures, shared

code.interact(banner="futures and shared are there; Ctrl-D ends", local={"futures": futures, "shared": shared})
