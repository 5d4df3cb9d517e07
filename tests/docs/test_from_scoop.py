"""The way over from SCOOP: every row of the document says something, and names a test that exists."""

from __future__ import annotations

import re

import pytest
from tests.conftest import REPOSITORY

from p2pscoop import futures, shared

TEXT = (REPOSITORY / "docs" / "from-scoop.md").read_text()
# All rows between the first heading and that of the examples, without those that begin a table.
TABLES = TEXT.partition("## `futures`")[2].partition("## Examples")[0]
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in TABLES.splitlines()
    if line.startswith("|") and not re.match(r"\| (---|(name|option|what) \|)", line)
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_row_is_full_and_names_a_test_that_exists(row: list[str]) -> None:
    name, verdict, known, test = row
    assert name
    assert verdict in ("same", "better", "gone")
    assert known
    named = re.fullmatch(r"`([\w/]+/test_\w+\.py)::(test_\w+)`", test)
    assert named is not None
    assert re.search(rf"^(async )?def {named[2]}\(", (REPOSITORY / "tests" / named[1]).read_text(), re.MULTILINE)


def test_there_are_rows() -> None:
    assert len(ROWS) > 50


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
