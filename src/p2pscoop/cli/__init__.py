"""The command line: `p2pscoop run` and `p2pscoop join`."""

from p2pscoop.cli._main import main, run

__all__ = ["main", "run"]
