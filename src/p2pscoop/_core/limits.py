"""Every bound and every duration of the protocol, with the reason for its size.

Bounds end in `_max`, durations in `_s`. Constants of the wire format are module constants; what a
cluster may want to tune, and what the simulator does tune, is in `Limits`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NODE_ID_SIZE", "PROTOCOL_VERSION", "Limits"]

PROTOCOL_VERSION = 1
"""Raised with every change that an older node would misread."""

NODE_ID_SIZE = 8
"""Bytes. 2**64 ids: among 10,000 process starts a collision has a chance below 1e-11."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and durations of one node. All nodes of a cluster should use the same."""

    # Sizes, in bytes. A frame is what the transport carries at once; longer messages are cut up.
    frame_max: int = 8 * 1024 * 1024
    """A frame is copied whole and blocks the pipe behind it: 8 MiB is some 5 ms on 10 Gbit/s."""
    header_max: int = 1024 * 1024
    """A header holds ids, tokens and lengths only: about 30 bytes a task, 1,000 tasks with room to spare."""
    message_max: int = 2 * 1024 * 1024 * 1024
    """The largest message, and so the largest payload: what one argument or result may weigh."""
    assembly_max: int = 4 * 1024 * 1024 * 1024
    """All half-received messages of a node together."""

    bulk_min: int = 1024 * 1024
    """A value from this size on stays with the node that computed it until somebody wants it: a continuation that
    goes there instead has a few hundred bytes."""

    # Counts.
    steal_batch_max: int = 64
    """Tasks in one grant. A steal costs about 0.3 ms; more tasks than this no longer amortise it better."""
    result_batch_max: int = 256
    """Outcomes in one message."""
    held_max: int = 100_000
    """Tasks that a node accepts for others at a time; above it, grants are rejected."""
    members_max: int = 10_000
    """Peers that a node knows, dead ones included."""
    deaths_max: int = 5
    """So many nodes that died with it make a task poison, which is not run again. With 3, tasks that take as long
    as a node lives under steady killing were blamed for it; more would cost more nodes."""
    connections_max: int = 256
    """Peers to which a node keeps a connection. Of more, those that it has not spoken to for longest are closed,
    but none on which a custody depends. As many may come from peers: together half of the usual 1,024
    descriptors."""
    early_steals_max: int = 256
    """Thieves that asked before they were introduced, and are answered when they are."""
    stopped_max: int = 10_000
    """Cancelled tasks that their owner remembers, to interrupt them wherever they turn up."""
    tombstones_max: int = 50_000
    """Ended custodies that a node remembers, so that a late duplicate of a grant is not run again."""

    # Durations, in seconds.
    join_resend_s: float = 0.25
    """A JOIN is repeated this often until it is answered."""
    result_delay_s: float = 0.002
    """An outcome waits so long for others to the same owner, unless the node runs out of work first."""
    resend_s: float = 0.5
    """First repetition of what was not acknowledged: far above a round trip, and above the pause that C
    code which holds the GIL often causes. Doubles up to `resend_max_s`."""
    resend_max_s: float = 8.0
    steal_timeout_s: float = 1.0
    """A victim that says nothing for so long is taken for one that has nothing."""
    lifeline_refresh_s: float = 3.0
    """An idle node renews one of its registrations this often, in turn. With the gossip of `sync_s` it then says
    some 0.7 messages a second; to a node that heard of none of its registrations, no work comes for so long."""
    lease_s: float = 45.0
    """A holder that is not heard of for so long has lost the task. Long, because user code in C can hold
    the GIL and silence a healthy node."""
    vouched_s: float = 600.0
    """A holder whose process is known to live may say nothing for so long: C code in it can hold the GIL, or
    it may be stopped."""
    sync_s: float = 5.0
    """Every so often a node compares its members with those of one random peer, and asks one that it takes for
    dead whether it is."""
    connection_idle_s: float = 300.0
    """A connection over which nothing was said for so long is closed; it opens again when there is something."""
    leave_s: float = 2.0
    """A leaving node waits so long for the last acknowledgements, and the word of a node that has left may be
    overtaken by its goodbye for so long."""

    # Stealing.
    random_steals: int = 2
    """Failed steals from random victims before an idle node turns to its lifelines
    (Saraswat et al., Lifeline-based Global Load Balancing, 2011, found 1 to 2 enough)."""

    @property
    def holding_s(self) -> float:
        """A holder renews its leases three times within one."""
        return self.lease_s / 3
