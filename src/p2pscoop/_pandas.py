"""An engine for `apply` and `map` of pandas, 3 or later.

    frame.apply(f, axis=1, engine=p2pscoop.pandas_engine())

The data is cut into parts, pandas itself applies the function to each on a node, and the results are put together
again. A function that gives results of several types, or shapes, may so get a column of another type than in one
piece: pandas looks at each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from p2pscoop import _local, futures

__all__ = ["PandasEngine", "pandas_engine"]

_PARTS_PER_NODE = 4


def pandas_engine(executor: Executor | None = None) -> PandasEngine:
    """For the `engine` argument of `DataFrame.apply`, `Series.apply` and `Series.map`.

    Args:
        executor: where the calls are made  [default: the nodes of `futures`].

    Raises:
        TypeError: `executor` is none.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor must be an Executor, not {type(executor).__qualname__}")
    return PandasEngine(executor)


class PandasEngine:
    """What pandas calls an execution engine."""

    def __init__(self, executor: Executor | None) -> None:
        self._map: Callable[..., Any] = futures.map if executor is None else executor.map
        self._executor = executor

    @property
    def __pandas_udf__(self) -> PandasEngine:
        """Where pandas looks for `apply` and `map`."""
        return self

    def apply(
        self,
        data: Any,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        decorator: object,
        axis: int | str,
    ) -> Any:
        """The function of each column (axis 0) or row (axis 1) of a frame, or of a two-dimensional array."""
        del decorator
        by_row = axis in (1, "columns")
        work = partial(_apply, func=func, args=args, kwargs=kwargs, by_row=by_row)
        return _joined(list(self._map(work, self._cut(data, 0 if by_row else 1))), by_row)

    def map(
        self,
        data: Any,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        decorator: object,
        skip_na: bool,
    ) -> Any:
        """The function of each element of a series, or of a frame."""
        del decorator
        work = partial(_map, func=func, args=args, kwargs=kwargs, skip_na=skip_na)
        return _joined(list(self._map(work, self._cut(data, 0))), True)

    def _cut(self, data: Any, axis: int) -> list[Any]:
        length = data.shape[axis]
        nodes = (
            _local.current().hooks.size() if self._executor is None else getattr(self._executor, "_max_workers", 1)
        )
        step = max(1, -(-length // (_PARTS_PER_NODE * nodes)))
        rows = getattr(data, "iloc", data)
        starts = range(0, max(1, length), step)
        return [rows[at : at + step] if axis == 0 else rows[:, at : at + step] for at in starts]


def _apply(part: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], by_row: bool) -> Any:
    if hasattr(part, "apply"):
        return part.apply(func, axis=int(by_row), args=args, **kwargs)
    import numpy as np

    return np.apply_along_axis(func, int(by_row), part, *args, **kwargs)


def _map(part: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], skip_na: bool) -> Any:
    if args or kwargs:
        return part.map(lambda each: func(each, *args, **kwargs), na_action="ignore" if skip_na else None)
    return part.map(func, na_action="ignore" if skip_na else None)


def _joined(parts: Sequence[Any], by_row: bool) -> Any:
    import numpy as np
    import pandas as pd

    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=0 if by_row or parts[0].ndim == 1 else 1)
    # The columns of a frame have become values of a series, or columns of a frame.
    columns = not by_row and isinstance(parts[0], pd.DataFrame)
    return pd.concat(parts, axis=1 if columns else 0)
