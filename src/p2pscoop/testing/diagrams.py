"""Draws the protocol's state diagrams from the tables in the code, into the documents beside it.

    python -m p2pscoop.testing.diagrams            writes them
    python -m p2pscoop.testing.diagrams --check    says whether they are up to date

A drawing stands between two comments, `<!-- drawn: NAME -->` and `<!-- end -->`; what is between them is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import Enum
from itertools import product
from pathlib import Path
from typing import TypeVar

import click

import p2pscoop._core
from p2pscoop._core.custody import (
    HOLDER_TRANSITIONS,
    OWNER_TRANSITIONS,
    HolderState,
    OwnerState,
)
from p2pscoop._core.limits import Limits
from p2pscoop._core.membership import Membership
from p2pscoop._core.values import MemberEntry, MemberState, PeerInfo

__all__ = ["DOCUMENTS", "drawings", "redrawn"]

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)

_FOLDER = Path(p2pscoop._core.__file__).parent
DOCUMENTS = (_FOLDER / "CUSTODY.md", _FOLDER / "MEMBERSHIP.md")
"""The documents with drawings."""


def _states(transitions: Mapping[tuple[State, Event], State], start: State, end: State) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {start.name}"]
    together: dict[tuple[State, State], list[str]] = {}
    for (before, event), after in transitions.items():
        together.setdefault((before, after), []).append(event.name)
    for (before, after), events in together.items():
        lines.append(f"    {before.name} --> {'[*]' if after is end else after.name}: {', '.join(events)}")
    return "\n".join([*lines, "```"])


def _members() -> str:
    """What a row that arrives does to a row that is there, found by doing it."""
    me, peer = (PeerInfo(name, "", (), "", False, True, "", 0, "") for name in (b"me", b"peer"))
    lines = [
        "| the row here | the row that arrives | the row afterwards | told to the others |",
        "| --- | --- | --- | --- |",
    ]
    for before, after in product((None, *MemberState), MemberState):
        for incarnation in (1,) if before is None else (0, 1, 2):
            table = Membership(me, Limits())
            if before is not None:
                table.merge([MemberEntry(peer, before, 1)])
            changes = table.merge([MemberEntry(peer, after, incarnation)])
            row = table.row(peer.id)
            assert row is not None
            if before is not None and row == MemberEntry(peer, before, 1):
                continue
            here = "none" if before is None else f"{before.name}, 1"
            told = ", ".join(change.kind.name for change in changes) or "nothing"
            lines.append(
                f"| {here} | {after.name}, {incarnation} | {row.state.name}, {row.incarnation} | {told} |"
            )
    return "\n".join(lines)


def drawings() -> dict[str, str]:
    """Every drawing by its name."""
    return {
        "owner": _states(OWNER_TRANSITIONS, OwnerState.HOME, OwnerState.SETTLED),
        "holder": _states(HOLDER_TRANSITIONS, HolderState.QUEUED, HolderState.GONE),
        "members": _members(),
    }


def redrawn(text: str) -> str:
    """A document with its drawings as the code has them now."""
    for name, drawing in drawings().items():
        pattern = re.compile(rf"(<!-- drawn: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, drawing=drawing: match[1] + drawing + match[2], text)  # type: ignore[misc]
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Change nothing; fail if something would be changed.")
def main(check: bool) -> None:
    """Draw the state diagrams of the protocol's documents from the code."""
    stale = [path for path in DOCUMENTS if redrawn(path.read_text()) != path.read_text()]
    for path in stale:
        if not check:
            path.write_text(redrawn(path.read_text()))
        click.echo(f"{path}: {'out of date' if check else 'drawn'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main(prog_name="python -m p2pscoop.testing.diagrams")
