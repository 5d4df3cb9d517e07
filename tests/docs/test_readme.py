"""What the documents tell a reader to run does run, and the documents refer to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY, Script

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks() -> list[tuple[str, str]]:
    """The Python programs of all documents, by document and number."""
    return [
        (f"{path.name} {number}", block)
        for path in DOCUMENTS
        if path.name != "recipes.md"  # Those are run by test_recipes.
        for number, block in enumerate(PYTHON.findall(path.read_text()), 1)
    ]


@pytest.mark.parametrize("block", [block for _, block in blocks()], ids=[name for name, _ in blocks()])
def test_programs_in_the_documents_run(block: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(block)
    done = Script(path).run(env={"P2PSCOOP_NODES": "2"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_has_the_two_commands() -> None:
    text = (REPOSITORY / "README.md").read_text()
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n([^\n]+)\n```", text)
    assert [name for name, _ in commands] == ["job", "tests"]
    for _, command in commands:
        assert command.startswith("python3 -m venv .venv && ")
