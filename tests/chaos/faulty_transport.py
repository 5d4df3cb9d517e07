"""A transport that loses, repeats, delays and cuts messages, in the place of the real one.

`install` has every interpreter that is started with this environment use it: nodes, origins, all. The real
sockets are still below it. It misbehaves until the file of the same name as its settings is removed.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pscoop import _runtime
from p2pscoop._transport import NngTransport

VARIABLE = "P2PSCOOP_TEST_FAULTS"


def install(directory: Path, **settings: float) -> dict[str, str]:
    """The environment in which all use this transport.

    Args:
        directory: for what has to be written.
        settings: `loss`, `duplication` and `truncation` are shares of the messages; `delay_s` is the mean.
    """
    here = Path(__file__)
    (directory / "sitecustomize.py").write_text(
        f"import sys; sys.path.append({str(here.parent)!r}); import {here.stem}; {here.stem}.take_over()\n"
    )
    faults = directory / "faults.json"
    faults.write_text(json.dumps(settings))
    return {VARIABLE: str(faults), "PYTHONPATH": str(directory)}


def take_over() -> None:
    """Let runtimes of this process use `FaultyTransport`."""
    _runtime.NngTransport = FaultyTransport  # type: ignore[misc]


class FaultyTransport(NngTransport):
    def __init__(self, *args: Any) -> None:
        self._path = os.environ[VARIABLE]
        settings = json.loads(Path(self._path).read_text()) if os.path.exists(self._path) else {}
        self._loss = settings.get("loss", 0.0)
        self._duplication = settings.get("duplication", 0.0)
        self._truncation = settings.get("truncation", 0.0)
        self._delay_s = settings.get("delay_s", 0.0)
        self._draw = random.Random()
        self._late: list[tuple[float, int, bytes, Sequence[str], bytes]] = []
        self._number = 0
        self._changed = threading.Condition()
        super().__init__(*args)
        threading.Thread(target=self._send_late, daemon=True).start()

    def send(self, peer: bytes, addresses: Sequence[str], data: bytes) -> None:
        if not os.path.exists(self._path):
            super().send(peer, addresses, data)
            return
        chance = self._draw.random
        # The first message opens the connection, as it does in the real transport even if it is lost.
        if chance() < self._loss and peer in self._links:
            return
        if chance() < self._truncation:
            data = data[: self._draw.randrange(1, len(data))]
        for _ in range(2 if chance() < self._duplication else 1):
            delay_s = self._draw.expovariate(1 / self._delay_s) if self._delay_s else 0.0
            with self._changed:
                self._number += 1
                heapq.heappush(self._late, (time.monotonic() + delay_s, self._number, peer, addresses, data))
                self._changed.notify()

    def _send_late(self) -> None:
        while not self._closed:
            with self._changed:
                now = time.monotonic()
                if not self._late or self._late[0][0] > now:
                    self._changed.wait(min(self._late[0][0] - now, 0.1) if self._late else 0.1)
                    continue
                _, _, peer, addresses, data = heapq.heappop(self._late)
            super().send(peer, addresses, data)
