"""Who has a task that has left its owner: the two ledgers of a node, and every transition of a record.

The owner of a lent task keeps one record of it until it has the outcome (`OwnerLedger`), its holder one from
grant to acknowledged result (`HolderLedger`). CUSTODY.md beside this file tells the protocol as a story, with
its races as numbered steps. This module decides what a record becomes; it sends nothing and knows no time but
the `now` it is given. What to send is `node`'s part.

The transition tables are the whole truth: a pair that is not in them is a bug of this node, and raises
`LocalProtocolError`. What a peer says out of turn never gets that far; the ledgers' methods sort it out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from p2pscoop._core.ids import FIRST_TOKEN, NodeId, TaskKey, Token
from p2pscoop._core.values import Outcome, OutcomeKind, OwnTask, Spec, SpecKind, TaskEntry
from p2pscoop.errors import LocalProtocolError

__all__ = [
    "HOLDER_TRANSITIONS",
    "OWNER_TRANSITIONS",
    "Held",
    "HolderEvent",
    "HolderLedger",
    "HolderState",
    "Lent",
    "OwnerEvent",
    "OwnerLedger",
    "OwnerState",
]


# --------------------------------------------------------------------------------- the owner's side


class OwnerState(Enum):
    """Where the owner believes its task to be. Settled tasks have no record."""

    HOME = auto()
    """On the owner's node again, after having been lent."""
    OFFERED = auto()
    """Granted to the holder, who has not accepted yet: the owner keeps the spec and repeats the grant."""
    LENT = auto()
    """Accepted by the holder; ours again when the lease runs out."""
    SETTLED = auto()
    """The outcome is here. The record is dropped with the transition."""


class OwnerEvent(Enum):
    """What can happen to a lent task, as its owner sees it."""

    LEND = auto()
    ACCEPTED = auto()
    REJECTED = auto()
    RETURNED = auto()
    LOST = auto()
    SETTLED = auto()


OWNER_TRANSITIONS: dict[tuple[OwnerState, OwnerEvent], OwnerState] = {
    (OwnerState.HOME, OwnerEvent.LEND): OwnerState.OFFERED,
    (OwnerState.OFFERED, OwnerEvent.ACCEPTED): OwnerState.LENT,
    (OwnerState.LENT, OwnerEvent.ACCEPTED): OwnerState.LENT,
    (OwnerState.OFFERED, OwnerEvent.REJECTED): OwnerState.HOME,
    (OwnerState.OFFERED, OwnerEvent.RETURNED): OwnerState.HOME,
    (OwnerState.LENT, OwnerEvent.RETURNED): OwnerState.HOME,
    (OwnerState.OFFERED, OwnerEvent.LOST): OwnerState.HOME,
    (OwnerState.LENT, OwnerEvent.LOST): OwnerState.HOME,
    (OwnerState.HOME, OwnerEvent.SETTLED): OwnerState.SETTLED,
    (OwnerState.OFFERED, OwnerEvent.SETTLED): OwnerState.SETTLED,
    (OwnerState.LENT, OwnerEvent.SETTLED): OwnerState.SETTLED,
}


@dataclass(slots=True)
class Lent:
    """The owner's record of one task that has left its node at least once.

    Attributes:
        serial: the owner's number for it, for life.
        handle: what the shell knows it by; never looked into.
        state: see `OwnerState`.
        token: of the newest custody that the owner knows of.
        holder: who has that custody; the owner itself while it is HOME.
        spec: kept while it may have to be sent again, dropped once accepted.
        lease_until: when an unrenewed custody is taken for lost.
        claimed_at: when the holder last claimed it, or it was offered.
        suspected: the nodes that died while they had it, as far as it may have been the cause.
        deaths_max: see `OwnTask`.
        kept: whether the holder has a value that it keeps.
        wanted: whether that has been asked for.
    """

    serial: int
    handle: object
    state: OwnerState
    token: Token
    holder: NodeId
    spec: Spec | None
    lease_until: float
    claimed_at: float = 0.0
    suspected: tuple[NodeId, ...] = ()
    deaths_max: int | None = None
    kept: bool = False
    wanted: bool = False

    def advance(self, event: OwnerEvent) -> None:
        """Make the transition."""
        try:
            self.state = OWNER_TRANSITIONS[self.state, event]
        except KeyError:
            raise LocalProtocolError(
                f"task {self.serial} {self.token}: {event.name} in state {self.state.name}"
            ) from None


class OwnerLedger:
    """The tasks of this node that are, or were, elsewhere."""

    def __init__(self, me: NodeId, lease_s: float) -> None:
        self._me = me
        self._lease_s = lease_s
        self._records: dict[int, Lent] = {}
        self._next_serial = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Lent]:
        return iter(self._records.values())

    def get(self, serial: int) -> Lent | None:
        """The record of an unsettled task."""
        return self._records.get(serial)

    def lend(self, now: float, task: OwnTask, thief: NodeId) -> Lent:
        """Offer a task to a thief: a new one, or (with its serial) one that came home."""
        if task.serial is None:
            record = Lent(self._next_serial, task.handle, OwnerState.HOME, FIRST_TOKEN, self._me, None, 0.0)
            self._records[record.serial] = record
            self._next_serial += 1
        else:
            record = self._records[task.serial]
        record.advance(OwnerEvent.LEND)
        record.token = record.token.passed()
        record.holder = thief
        record.spec = task.spec
        record.deaths_max = task.deaths_max
        self._claim(record, now)
        return record

    def on_accept(self, now: float, holder: NodeId, serial: int, token: Token) -> Lent | None:
        """The thief, or a later holder, says that it has the task. The record, if a continuation left with it."""
        record = self._records.get(serial)
        if record is None or record.state is OwnerState.HOME or token < record.token:
            return None  # Settled, home again, or passed on meanwhile: an old message.
        record.advance(OwnerEvent.ACCEPTED)
        spec, record.spec = record.spec, None
        record.token = token
        record.holder = holder
        self._claim(record, now)
        return record if spec is not None and spec.kind is SpecKind.CONTINUATION else None

    def on_reject(self, holder: NodeId, serial: int, token: Token) -> Lent | None:
        """The thief does not want it. The record, if that brings it home."""
        record = self._records.get(serial)
        if (
            record is None
            or record.state is not OwnerState.OFFERED
            or record.holder != holder
            or record.token != token
        ):
            return None
        return self._bring_home(record, OwnerEvent.REJECTED, record.token.passed())

    def on_holding(
        self, now: float, holder: NodeId, entries: Iterable[TaskEntry]
    ) -> tuple[tuple[TaskEntry, ...], list[Lent]]:
        """Renew the leases of these custodies. Those that are in vain, and records as of `on_accept`."""
        obsolete = []
        released = []
        for entry in entries:
            record = self._records.get(entry.serial)
            if record is None or record.state is OwnerState.HOME or entry.token < record.token:
                # Race 3 of CUSTODY.md: the verdict names the custody it judged, and binds no later one.
                obsolete.append(entry)
            else:
                record = self.on_accept(now, holder, entry.serial, entry.token)
                if record is not None:
                    released.append(record)
        return tuple(obsolete), released

    def on_kept(self, now: float, holder: NodeId, serial: int, token: Token) -> Lent | None:
        """The holder has a value, and keeps it. The record, unless this is old news."""
        record = self._records.get(serial)
        if record is None or record.state is OwnerState.HOME or token < record.token:
            return None
        self.on_accept(now, holder, serial, token)
        record.kept = True
        return record

    def on_return(self, serial: int, token: Token) -> Lent | None:
        """A holder grants the task back to its owner. The record, if that brings it home."""
        record = self._records.get(serial)
        if record is None or record.state is OwnerState.HOME or token <= record.token:
            return None
        return self._bring_home(record, OwnerEvent.RETURNED, token)

    def settle(self, serial: int) -> Lent | None:
        """The outcome is here, from whomever; the first one counts. The record, if it is the first."""
        record = self._records.pop(serial, None)
        if record is not None:
            record.advance(OwnerEvent.SETTLED)
        return record

    def lose_holder(self, holder: NodeId, *, killed: bool = True) -> list[Lent]:
        """The holder is dead: what it held comes home, as a new attempt.

        If it was killed, one of these tasks may have done it. If one was suspected before, it is that one; else
        each may be.
        """
        lost = [
            record
            for record in self._records.values()
            if record.holder == holder and record.state is not OwnerState.HOME
        ]
        unfinished = [record for record in lost if killed and not record.kept]
        for record in [record for record in unfinished if record.suspected] or unfinished:
            if holder not in record.suspected:  # One that is taken for dead, and is not, may be lost again.
                record.suspected = (*record.suspected, holder)
        return [self._lose(record) for record in lost]

    def has_suspect(self, holder: NodeId) -> bool:
        """Whether a task that may have killed a node is with this one."""
        return any(record.suspected and record.holder == holder for record in self._records.values())

    def release_holder(self, now: float, holder: NodeId, grace_s: float) -> None:
        """The holder has drained and left: what it held is with others, who say so, now or with their renewals.

        What it was offered may never have reached it, and comes home soon unless somebody has it.
        """
        for record in self._records.values():
            if record.holder == holder and record.state is OwnerState.OFFERED:
                record.lease_until = min(record.lease_until, now + grace_s)

    def _claim(self, record: Lent, now: float) -> None:
        record.claimed_at = now
        record.lease_until = now + self._lease_s

    def vouch(self, now: float, holder: NodeId, heard_at: float) -> None:
        """The holder says nothing, and its process lives: it will say something.

        Race 12 of CUSTODY.md: what it did not claim for a whole lease, although it was heard of at the end of it,
        it does not have.
        """
        for record in self._records.values():
            if (
                record.holder == holder
                and record.state is not OwnerState.HOME
                and heard_at <= record.claimed_at + self._lease_s
            ):
                record.lease_until = now + self._lease_s

    def renew(self, now: float, holder: NodeId) -> None:
        """Nobody listened to the holder for a while: its leases begin anew."""
        for record in self._records.values():
            if record.holder == holder and record.state is not OwnerState.HOME:
                self._claim(record, now)

    @property
    def holders(self) -> set[NodeId]:
        """The nodes that have tasks of this one, or are offered some."""
        return {record.holder for record in self._records.values() if record.state is not OwnerState.HOME}

    def expire(self, now: float) -> list[Lent]:
        """Custodies whose lease ran out come home, as a new attempt."""
        lost = [
            record
            for record in self._records.values()
            if record.state is not OwnerState.HOME and record.lease_until <= now
        ]
        return [self._lose(record) for record in lost]

    def _lose(self, record: Lent) -> Lent:
        return self._bring_home(record, OwnerEvent.LOST, record.token.requeued())

    def _bring_home(self, record: Lent, event: OwnerEvent, token: Token) -> Lent:
        record.advance(event)
        record.token = token
        record.holder = self._me
        record.spec = None
        record.kept = record.wanted = False
        return record


# -------------------------------------------------------------------------------- the holder's side


class HolderState(Enum):
    """What a holder does with a task of somebody else. Ended custodies leave a tombstone."""

    QUEUED = auto()
    """Not started yet, or suspended and ready to go on: to be run here, or passed on."""
    RUNNING = auto()
    """Started, or suspended and waiting."""
    OFFERED = auto()
    """Granted on to a third node, which has not accepted yet."""
    FINISHED = auto()
    """The owner has not acknowledged the outcome yet."""
    GONE = auto()
    """Passed on, acknowledged or dropped. The record is dropped with the transition."""


class HolderEvent(Enum):
    """What can happen to a held task."""

    START = auto()
    READY = auto()
    OFFER = auto()
    PASSED = auto()
    TAKEN_BACK = auto()
    CAME_BACK = auto()
    FINISH = auto()
    ACKNOWLEDGED = auto()
    DROPPED = auto()


HOLDER_TRANSITIONS: dict[tuple[HolderState, HolderEvent], HolderState] = {
    (HolderState.QUEUED, HolderEvent.START): HolderState.RUNNING,
    (HolderState.RUNNING, HolderEvent.READY): HolderState.QUEUED,
    (HolderState.QUEUED, HolderEvent.OFFER): HolderState.OFFERED,
    (HolderState.OFFERED, HolderEvent.PASSED): HolderState.GONE,
    (HolderState.OFFERED, HolderEvent.TAKEN_BACK): HolderState.QUEUED,
    (HolderState.OFFERED, HolderEvent.CAME_BACK): HolderState.QUEUED,
    (HolderState.RUNNING, HolderEvent.FINISH): HolderState.FINISHED,
    (HolderState.FINISHED, HolderEvent.ACKNOWLEDGED): HolderState.GONE,
    (HolderState.QUEUED, HolderEvent.DROPPED): HolderState.GONE,
    (HolderState.OFFERED, HolderEvent.DROPPED): HolderState.GONE,
    (HolderState.FINISHED, HolderEvent.DROPPED): HolderState.GONE,
}


@dataclass(slots=True)
class Held:
    """A holder's record of one task of another node.

    Attributes:
        key: owner and serial.
        token: of this custody.
        state: see `HolderState`.
        spec: kept until the task is started or passed on; of a continuation, from offer to answer only.
        target: to whom it is offered.
        outcome: once finished.
        kept: whether the owner is told of the outcome, and has to ask for it.
        orphan: the owner is gone, so that nobody waits for the outcome.
    """

    key: TaskKey
    token: Token
    state: HolderState
    spec: Spec | None
    target: NodeId | None = None
    outcome: Outcome | None = None
    kept: bool = False
    orphan: bool = False

    @property
    def announced(self) -> Outcome | None:
        """What the owner is sent of the outcome."""
        if self.outcome is None or not self.kept:
            return self.outcome
        return Outcome(OutcomeKind.KEPT, len(self.outcome.payload).to_bytes(8, "big"))

    @property
    def entry(self) -> TaskEntry:
        """This custody, as messages name it."""
        return TaskEntry(self.key.owner, self.key.serial, self.token)

    def advance(self, event: HolderEvent) -> None:
        """Make the transition."""
        try:
            self.state = HOLDER_TRANSITIONS[self.state, event]
        except KeyError:
            raise LocalProtocolError(
                f"task {self.key.serial} of {self.key.owner.hex()} {self.token}: "
                f"{event.name} in state {self.state.name}"
            ) from None


class HolderLedger:
    """The tasks of other nodes that this node has."""

    def __init__(self, tombstones_max: int) -> None:
        self._records: dict[TaskKey, Held] = {}
        self._tombstones: OrderedDict[TaskKey, Token] = OrderedDict()
        self._refused: OrderedDict[TaskKey, Token] = OrderedDict()
        self._tombstones_max = tombstones_max

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._records.values())

    def get(self, key: TaskKey) -> Held | None:
        """The record of a task in custody."""
        return self._records.get(key)

    def answer(self, key: TaskKey, token: Token) -> bool | None:
        """What was answered to this offer: True if it was accepted, False if rejected, None if it is new.

        Race 10 of CUSTODY.md: an offer that is repeated gets the same answer.
        """
        if self._refused.get(key) == token:
            return False
        record = self._records.get(key)
        last = self._tombstones.get(key) if record is None else record.token
        return True if last is not None and token <= last else None

    def refuse(self, key: TaskKey, token: Token) -> None:
        """This offer was rejected."""
        self._remember(self._refused, key, token)

    def on_grant(self, key: TaskKey, token: Token, spec: Spec) -> Held | None:
        """Take custody. The record, if the task is to be queued; every grant is to be accepted anyway."""
        record = self._records.get(key)
        if record is None:
            tombstone = self._tombstones.get(key)
            if tombstone is not None and token <= tombstone:
                return None  # A late copy of a grant that was served already.
            record = self._records[key] = Held(key, token, HolderState.QUEUED, spec)
            return record
        if token <= record.token:
            return None  # A repeated grant: the first ACCEPT was lost or is on its way.
        if record.state is HolderState.OFFERED:
            if record.target is not None and token <= record.token.passed():
                return None
            # Race 1 of CUSTODY.md: it went round and is here before the ACCEPT of the one it was offered to.
            record.advance(HolderEvent.CAME_BACK)
            record.token, record.spec, record.target = token, spec, None
            return record
        # Queued, running or finished here already: the newer custody is this same copy.
        record.token = token
        record.orphan = False
        return None

    def start(self, key: TaskKey) -> Held | None:
        """The node begins to run it. None if it is no longer the node's to run."""
        record = self._records.get(key)
        if record is None or record.state is not HolderState.QUEUED:
            return None
        record.advance(HolderEvent.START)
        record.spec = None
        return record

    def finish(self, key: TaskKey, outcome: Outcome) -> Held | None:
        """It ended. The record, if somebody waits for the outcome."""
        record = self._records[key]
        record.advance(HolderEvent.FINISH)
        if record.orphan:
            self._drop(record, HolderEvent.DROPPED)
            return None
        record.outcome = outcome
        return record

    def unkeep(self, key: TaskKey) -> Held | None:
        """The owner is to be sent the value after all. The record, if it was kept."""
        record = self._records.get(key)
        if record is None or not record.kept:
            return None
        record.kept = False
        return record

    def on_result_ack(self, key: TaskKey) -> None:
        """The owner has the outcome, or does not want it."""
        record = self._records.get(key)
        if record is not None and record.state is HolderState.FINISHED:
            self._drop(record, HolderEvent.ACKNOWLEDGED)

    def ready(self, key: TaskKey) -> bool:
        """Its frames were waiting, and can go on: it may be passed on again. False if nobody waits for it."""
        record = self._records[key]
        record.advance(HolderEvent.READY)
        if record.orphan:
            self._drop(record, HolderEvent.DROPPED)
            return False
        return True

    def offer(self, key: TaskKey, target: NodeId, spec: Spec | None) -> Held | None:
        """Offer a queued task to a thief, as it came or as this continuation. None if it is not ours to give."""
        record = self._records.get(key)
        if record is None or record.state is not HolderState.QUEUED:
            return None
        record.advance(HolderEvent.OFFER)
        record.target = target
        if spec is not None:
            record.spec = spec
        return record

    def on_accept(self, holder: NodeId, key: TaskKey, token: Token) -> Held | None:
        """The thief has it: forget it. The record, if a continuation left with it."""
        record = self._offered_to(holder, key, token)
        if record is None:
            return None
        record.token = token
        self._drop(record, HolderEvent.PASSED)
        return record if record.spec is not None and record.spec.kind is SpecKind.CONTINUATION else None

    def bounce(self, key: TaskKey) -> Held | None:
        """It turned out, at its start, that it cannot go on here. The record, queued to be given back."""
        record = self._records.get(key)
        if record is None or record.state is not HolderState.RUNNING:
            return None
        record.advance(HolderEvent.READY)
        if record.orphan:
            self._drop(record, HolderEvent.DROPPED)
            return None
        return record

    def on_reject(self, holder: NodeId, key: TaskKey, token: Token) -> Held | None:
        """The thief does not want it. The record, to be queued again."""
        record = self._offered_to(holder, key, token)
        return None if record is None else self._take_back(record)

    def lose_target(self, target: NodeId) -> list[Held]:
        """The thief is gone: what it was offered and did not accept is queued again.

        What it owns has to be dropped first (`lose_owner`): a bounced task can go nowhere but to its owner.
        """
        lost = [
            record
            for record in self._records.values()
            if record.state is HolderState.OFFERED and record.target == target
        ]
        return [self._take_back(record) for record in lost]

    def on_obsolete(self, entry: TaskEntry) -> Held | None:
        """The owner's verdict on one custody. The record, if it was dropped."""
        record = self._records.get(TaskKey(entry.owner, entry.serial))
        if record is None or record.token > entry.token:
            return None
        if record.state in (HolderState.RUNNING, HolderState.FINISHED):
            return None  # Results are facts: let it end, the owner takes the first one.
        self._drop(record, HolderEvent.DROPPED)
        return record

    def lose_owner(self, owner: NodeId) -> list[Held]:
        """Nobody waits for these any more. Those that were dropped before they had an outcome."""
        dropped = []
        for record in [record for record in self._records.values() if record.key.owner == owner]:
            if record.state is HolderState.RUNNING:
                record.orphan = True
                continue
            if record.state is not HolderState.FINISHED:
                dropped.append(record)
            self._drop(record, HolderEvent.DROPPED)
        return dropped

    def stop(self, key: TaskKey) -> Held | None:
        """The owner wants it to end. The record, if it runs; it is dropped when it has ended."""
        record = self._records.get(key)
        if record is None or record.state is not HolderState.RUNNING:
            return None
        record.orphan = True
        return record

    def cancel(self, key: TaskKey) -> Held | None:
        """The owner wants no outcome. The record, if it was dropped from the queue."""
        record = self._records.get(key)
        if record is None or record.state is not HolderState.QUEUED:
            return None
        self._drop(record, HolderEvent.DROPPED)
        return record

    def _offered_to(self, holder: NodeId, key: TaskKey, token: Token) -> Held | None:
        record = self._records.get(key)
        if (
            record is None
            or record.state is not HolderState.OFFERED
            or record.target != holder
            or token != record.token.passed()
        ):
            return None
        return record

    def _take_back(self, record: Held) -> Held:
        record.advance(HolderEvent.TAKEN_BACK)
        record.token = record.token.taken_back()
        record.target = None
        return record

    def _drop(self, record: Held, event: HolderEvent) -> None:
        record.advance(event)
        del self._records[record.key]
        self._remember(self._tombstones, record.key, record.token)

    def _remember(self, memory: OrderedDict[TaskKey, Token], key: TaskKey, token: Token) -> None:
        memory[key] = token
        memory.move_to_end(key)
        while len(memory) > self._tombstones_max:
            memory.popitem(last=False)
