"""The protocol's documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

from p2pscoop._core.messages import MESSAGES
from p2pscoop.testing.diagrams import DOCUMENTS, drawings, redrawn

CORE = DOCUMENTS[0].parent
GUARANTEES = REPOSITORY / "docs" / "guarantees.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_drawings_are_up_to_date(path: Path) -> None:
    assert redrawn(path.read_text()) == path.read_text(), "run: python -m p2pscoop.testing.diagrams"


def test_every_drawing_is_in_a_document() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert sorted(re.findall(r"<!-- drawn: (\w+) -->", text)) == sorted(drawings())


def test_every_message_is_explained() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    missing = [message.__name__ for message in MESSAGES.values() if f"`{message.__name__}`" not in text]
    assert missing == []


def test_races_that_comments_refer_to_are_told() -> None:
    told = set(re.findall(r"^### (Race \d+)", (CORE / "CUSTODY.md").read_text(), re.MULTILINE))
    named = {race for path in CORE.glob("*.py") for race in re.findall(r"Race \d+", path.read_text())}
    assert named
    assert named <= told


def test_each_guarantee_has_a_test_that_exists() -> None:
    text = GUARANTEES.read_text()
    for guarantee in range(1, 9):
        (line,) = re.findall(rf"^\| G{guarantee} \|.*$", text, re.MULTILINE)
        assert "`tests/" in line
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        source = (REPOSITORY / path).read_text()
        assert f"def {name}(" in source or f"{name} = " in source, f"{path}::{name}"
