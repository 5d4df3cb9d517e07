"""Hosts and how many nodes each gets: how they are written, expanded and divided."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from p2pscoop.errors import ConfigurationError

__all__ = ["NODES_MAX", "Host", "divide", "expand", "group", "parse_count", "parse_option"]

NODES_MAX = 10_000
"""Of one run, and of one host. More is a slip of the keyboard."""
_USER = r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?"
_NAME = re.compile(_USER + r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|[0-9A-Fa-f:]*::[0-9A-Fa-f:]*)")
_BRACKETS = re.compile(r"\[([^][]*)\]")


class Host(NamedTuple):
    """A machine and its share of the nodes.

    Attributes:
        name: as ssh takes it: a name or an address, with `user@` before it if need be.
        nodes: how many on it; None: one for each of its usable cores.
        port: of its ssh server, if it is not the usual one.
    """

    name: str
    nodes: int | None = None
    port: int | None = None


def parse_count(text: str, where: str) -> int:
    """A number of nodes."""
    if not text.isdecimal() or not 1 <= int(text) <= NODES_MAX:
        raise ConfigurationError(f"{where}: {text!r} is not a number of nodes from 1 to {NODES_MAX}")
    return int(text)


def check_name(name: str, where: str) -> str:
    """A name that ssh may be given. One that begins with a dash would be an option."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: {name!r} is not the name or address of a host")
    return name


def parse_option(text: str, where: str = "--hosts") -> list[Host]:
    """What one word of `--hosts` says: `host`, `host:4`, `user@host`, `node[01-04]`, `a,b`."""
    hosts = []
    for word in split(text, where):
        name, colon, count = word.partition(":")
        if colon and ":" in count:
            name, colon, count = word, "", ""  # An IPv6 address.
        number = parse_count(count, f"{where}: {word}") if colon else 1
        hosts += [Host(check_name(each, where), number) for each in expand(name, where)]
    return hosts


def split(text: str, where: str) -> list[str]:
    """The parts between the commas that are not in brackets."""
    words = [word for word in re.split(r",(?![^\[]*\])", text.strip()) if word]
    if not words:
        raise ConfigurationError(f"{where}: no host is named")
    return words


def expand(text: str, where: str) -> list[str]:
    """The names that a bracketed list stands for, as Slurm writes them: `n[01-03,7]x[1-2],login`.

    A range keeps the width of its beginning. A library would do this as well; it is not worth an install.
    """
    names: list[str] = []
    for word in split(text, where):
        pieces = _BRACKETS.split(word)
        if any(bracket in piece for piece in pieces[0::2] for bracket in "[]"):
            raise ConfigurationError(f"{where}: the brackets of {word!r} do not match")
        choices = [[piece] if index % 2 == 0 else _numbers(piece, where) for index, piece in enumerate(pieces)]
        names += ["".join(choice) for choice in itertools.islice(itertools.product(*choices), NODES_MAX + 1)]
        if len(names) > NODES_MAX:
            raise ConfigurationError(f"{where}: {text!r} are more than {NODES_MAX} hosts")
    return names


def _numbers(text: str, where: str) -> list[str]:
    """`01-03,7` is 01, 02, 03, 7."""
    numbers: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not 0 <= int(last) - int(first) < NODES_MAX:
            raise ConfigurationError(f"{where}: {part!r} is not a number or a range such as 01-16")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def group(hosts: Iterable[Host]) -> list[Host]:
    """Each host once, in the order in which they were first named, with the sum of its counts."""
    counts: dict[tuple[str, int | None], int | None] = {}
    for name, count, port in hosts:
        before = counts.get((name, port), 0)
        counts[name, port] = None if count is None or before is None else before + count
    return [Host(name, count, port) for (name, port), count in counts.items()]


def divide(hosts: Sequence[Host], total: int | None) -> list[Host]:
    """Give a number of nodes to hosts.

    Fewer than the hosts have together: in order, so that the last ones may get none. More: in order, then one more
    for each in turn. A host without a count of its own gets what it gets in turn.
    """
    if total is None:
        return list(hosts)
    left = total
    counts = []
    for host in hosts:
        counts.append(min(host.nodes or 0, left))
        left -= counts[-1]
    for index in range(left):
        counts[index % len(hosts)] += 1
    return [host._replace(nodes=count) for host, count in zip(hosts, counts, strict=True) if count]
