"""Something is called when a task has ended, whoever waits for it or not.

p2pscoop run -n 4 docs/examples/callbacks.py
"""

from __future__ import annotations

import time

from p2pscoop import futures
from p2pscoop.futures import Future


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def report(future: Future[float]) -> None:
    print(f"slept for {future.result()} s")


naps = [futures.submit(nap, tenths / 10) for tenths in (3, 1, 2)]
for each in naps:
    each.add_done_callback(report)
done, not_done = futures.wait(naps)
print(f"{len(done)} done, {len(not_done)} not")
