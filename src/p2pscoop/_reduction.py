"""What is behind `futures.map_reduce`: a tree of tasks over the items of one call.

Each task of the tree has a run of neighbouring items. It splits the run in two, or maps the item if there is one
only; so the results of two runs that meet are neighbours too, and the order of the items is kept. A thief takes
the oldest task, which is the largest run. The tasks are coroutines: between any two of them the node can do
something else, such as notice that a timeout has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import Any

from p2pscoop._future import Future
from p2pscoop._local import submit

__all__ = ["Reduction"]


class Reduction:
    """Maps and reduces runs of items.

    Args:
        map_fn: called with one item, as its positional arguments.
        reduction_fn: called with the results of two neighbouring runs, the earlier one first.

    Either may be a coroutine function.
    """

    def __init__(self, map_fn: Callable[..., Any], reduction_fn: Callable[[Any, Any], Any]) -> None:
        self.map_fn = map_fn
        self.reduction_fn = reduction_fn

    async def reduce(self, items: list[tuple[Any, ...]]) -> Any:
        """The value of a run of at least one item."""
        if len(items) == 1:
            return await _value(self.map_fn(*items[0]))
        middle = len(items) // 2
        # The later half first: the node goes on with the newest task.
        right = submit(self.reduce, items[middle:])
        left = submit(self.reduce, items[:middle])
        earlier = await left
        return await _value(self.reduction_fn(earlier, await right))


async def _value(returned: Any) -> Any:
    """What a function returned, or what that stands for."""
    if type(returned) is CoroutineType or type(returned) is Future:
        return await returned
    return returned
