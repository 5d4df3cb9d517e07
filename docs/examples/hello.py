"""The least that there is: a function, mapped over some numbers, on all nodes.

p2pscoop run -n 4 docs/examples/hello.py
"""

from __future__ import annotations

from p2pscoop import futures


def greet(number: int) -> str:
    return f"hello from task {number}"


for greeting in futures.map(greet, range(8)):
    print(greeting)

# As soon as they are ready, in whatever order that is.
print(sorted(futures.map_as_completed(greet, range(3))))
