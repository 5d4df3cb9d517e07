"""The standard library's own tests of executors pass, on an interpreter that has them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from tests.continuation.test_machinery import interpreter

VERSION = "3.13"
HAS_TESTS = "import test.test_concurrent_futures.executor"


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter with CPython's `test` package and with what p2pscoop needs."""
    if succeeds(sys.executable, "-c", HAS_TESTS):
        return sys.executable
    found = interpreter(VERSION)
    if found is None or not succeeds(found, "-c", HAS_TESTS):
        pytest.skip(
            f"this machine has no Python {VERSION} with CPython's test package: its tests are not run here"
        )
    environment = tmp_path / "venv"
    python = str(environment / "bin" / "python")
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    if not succeeds(found, "-m", "venv", str(environment)) or not succeeds(
        python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *dependencies
    ):
        pytest.skip(f"pip cannot install what p2pscoop needs for {found}: CPython's tests are not run here")
    # A path file, and not PYTHONPATH: some of the programs that the tests start ignore the environment.
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "p2pscoop.pth").write_text(f"{REPOSITORY / 'src'}\n")
    return python


@pytest.mark.timeout(500)
def test_the_standard_library_is_content(python: str) -> None:
    done = subprocess.run(
        [python, "-m", "tests.api.standard_library"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=450,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    [ran] = re.findall(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    [skipped] = re.findall(r"skipped=(\d+)", done.stderr)
    assert int(ran) - int(skipped) >= 45
