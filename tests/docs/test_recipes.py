"""Every recipe gives what a serial run gives, if its libraries are there.

They are not all in the group of the tests: `pip install --group recipes` brings them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY, TIMEOUT_S

DOCUMENT = REPOSITORY / "docs" / "recipes.md"
RECIPES = dict(
    re.findall(r"^### ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
)


def libraries(program: str) -> set[str]:
    """What it imports, by the names of the packages at the top."""
    found = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def run(mode: str, path: Path) -> subprocess.CompletedProcess[str]:
    runner = Path(__file__).with_name("run_recipe.py")
    return subprocess.run(
        [sys.executable, str(runner), mode, str(path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=path.parent,
    )


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 20
    assert all("Executor" in program for program in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_a_serial_run_gives(name: str, tmp_path: Path) -> None:
    program = RECIPES[name]
    missing = sorted(each for each in libraries(program) if importlib.util.find_spec(each) is None)
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; pip install --group recipes")
    path = tmp_path / "recipe.py"
    path.write_text(program)
    serial, parallel = (run(mode, path) for mode in ("serial", "parallel"))
    assert serial.returncode == 0, serial.stderr
    assert parallel.returncode == 0, parallel.stderr
    assert serial.stdout.strip()
    assert parallel.stdout == serial.stdout
    [submitted] = re.findall(r"^submitted (\d+)$", parallel.stderr, re.MULTILINE)
    assert int(submitted) > 0
