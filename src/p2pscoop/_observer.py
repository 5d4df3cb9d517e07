"""A member that has no tasks and runs none: it looks at a cluster, and tells nodes to leave."""

from __future__ import annotations

import time
from types import TracebackType

from p2pscoop._attachment import JOIN_S, Attachment, explain
from p2pscoop._core.ids import NOBODY, NodeId
from p2pscoop._core.values import MemberEntry
from p2pscoop._pool import Pool
from p2pscoop._runtime import ASK_TO_LEAVE, NodeStatistics, Runtime

__all__ = ["Observer"]

_PAUSE_S = 0.05


class Observer:
    """Joins a cluster, as a context manager.

    Args:
        attached: which.

    Raises:
        StartError: no node has answered, or this process cannot be one.
        JoinRefusedError: the cluster does not want this process.
    """

    def __init__(self, attached: Attachment) -> None:
        self._runtime: Runtime | None = None
        nothing = Pool(lambda: None, lambda _: None, lambda _: None, b"", lambda: NOBODY, initializes=False)
        try:
            self._runtime = Runtime(
                nothing,
                name="observer",
                directory=None,
                seeds=attached.seeds,
                tcp=(attached.listen, 0),
                keys=attached.keys,
                cluster=attached.cluster,
                founder=False,
                steals=False,
                runs_tasks=False,
            )
            self._runtime.start()
            answered = nothing.member.wait(JOIN_S)
            if nothing.broken is not None:
                raise nothing.broken
            if not answered:
                raise explain(attached)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave. Safe to call twice."""
        if self._runtime is not None:
            self._runtime.stop("it has seen what it wanted")

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def runtime(self) -> Runtime:
        """The node."""
        assert self._runtime is not None
        return self._runtime

    def members(self) -> list[MemberEntry]:
        """The nodes and programs that the cluster remembers, by host and name. Other observers are neither."""
        rows = [row for row in self.runtime.node.membership.rows() if row.info.runs_tasks or row.info.origin]
        return sorted(rows, key=lambda row: (row.info.host, row.info.name, row.info.id))

    def statistics(self) -> dict[str, NodeStatistics]:
        """What the nodes have done, by their ids in hexadecimal; of those that answer in time."""
        return {each.id: each for each in self.runtime.statistics()}

    def tell_to_leave(self, node: NodeId) -> str:
        """Have a node drain and go, and wait until it is gone.

        Returns:
            Why it does not go; nothing if it is gone.
        """
        answers: list[str] = []
        self.runtime.inquire(node, ASK_TO_LEAVE, lambda answer: answers.append(answer.decode(errors="replace")))
        while not any(answers) and not self.runtime.node.membership.is_gone(node):
            time.sleep(_PAUSE_S)
        return "".join(answers)
