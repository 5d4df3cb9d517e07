"""The way over from SCOOP: every row of the document says something, and names a test that exists."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

from p2pscoop import futures, shared

TEXT = (REPOSITORY / "docs" / "from-scoop.md").read_text()
ROWS = [line.strip("|").split("|") for line in TEXT.splitlines() if re.search(r"\| (same|better|gone) \|", line)]


def test_every_row_names_a_test_that_exists() -> None:
    assert len(ROWS) > 50
    for name, _, _, test in ROWS:
        (path, function), *more = re.findall(r"`([\w/]+\.py)::(\w+)`", test)
        assert not more
        assert f"def {function}(" in (REPOSITORY / "tests" / path).read_text(), name


def test_every_option_of_the_command_is_told() -> None:
    from p2pscoop.cli._main import run

    told = {option for name, *_ in ROWS for option in re.findall(r"`(--?[a-z-]+)", name)}
    beyond_scoop = {"--listen", "--insecure", "--cluster", "--key-file"}
    given = {name for param in run.params if param.param_type_name == "option" for name in param.opts}
    assert given - beyond_scoop - {"--verbose", "--quiet"} <= told | {"-v", "-q"}


def test_every_name_is_told() -> None:
    told = " ".join(row[0] + row[2] for row in ROWS)
    beyond_scoop = {"CancelledError", "DoneAndNotDone", "Future", "gather"}
    for name in {*futures.__all__, *shared.__all__} - beyond_scoop:
        assert name in told


def test_every_example_is_told() -> None:
    for path in (REPOSITORY / "docs" / "examples").glob("*.py"):
        if path.stem not in ("digits_ga", "uts"):
            assert f"`{path.name}`" in TEXT
