"""`python -m p2pscoop script.py` is `p2pscoop run script.py`; `python -m p2pscoop join` is `p2pscoop join`."""

from __future__ import annotations

import sys

from p2pscoop.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    known = {*main.commands, *("-h", "--help", "--version")}
    if arguments and arguments[0] not in known:
        arguments = ["run", *arguments]
    main(arguments, prog_name="python -m p2pscoop")
