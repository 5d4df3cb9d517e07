"""The examples whose like SCOOP has say the same on one node and on three."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY, TIMEOUT_S, Script

EXAMPLES = REPOSITORY / "docs" / "examples"

SAYS = {
    "hello": r"(hello from task \d\n){8}\['hello from task 0', 'hello from task 1', 'hello from task 2'\]\n",
    "callbacks": r"(slept for 0\.[123] s\n){3}3 done, 0 not\n",
    "choice": r"91 is 7 times 13\n97 is prime, and 970 is not\n",
    "onemax": r"best of the last generation: (5\d|60) of 60 ones\n",
    "sorting_networks": r"of 32 sequences, .* left \d+ unsorted\nthe last one's leaves \d, with \d+ pairs\n",
    "full_tree": r"76153\n",
    "reductions": r"residual .*: \d+ as in a serial run: True\nit only grows: True and ends there: True\n"
    r"multiples of 3 or 5 below 1000: 233168\n",
    "objects": r"\[5, 6, 7, 8, 9, 10, 11, 12, 13, 14\]\n\[101\]\n",
    "recursion": r"2 to the 12 is 4096\n",
    "constants": r"\[1\.5, 3\.0, 3\.0\]\nthe constant 'prices' exists already: .*\nNone\n",
    "merge_sort": r"sorted: True\n",
    "tree_traversal": r"a tree of 5000 values is \d+ deep; one task finds the same: True\n",
    "url_fetch": r"(http://127\.0\.0\.1:\d+/(\d+) \2\n){10}altogether 225000\n",
}


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, nodes: int) -> None:
    done = Script(EXAMPLES / f"{name}.py").run(nodes=nodes)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SAYS[name], done.stdout), done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("nodes", [1, 3])
def test_exceptions(nodes: int) -> None:
    done = Script(EXAMPLES / "exceptions.py").run(nodes=nodes)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # What is printed in a task comes from whichever node ran it.
    in_tasks = [line for line in lines if line.endswith("in a task: -16 has no real root")]
    assert len(in_tasks) == 1
    assert "[1.0, 2.0, 3.0]" in lines
    assert lines[-2:] == ["in the main program: -2 has no real root", "ValueError"]


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="PILLOW IS NOT INSTALLED: pip install pillow")
@pytest.mark.parametrize("nodes", [1, 3])
def test_image_resize(nodes: int, tmp_path: Path) -> None:
    from PIL import Image

    image = Image.linear_gradient("L").resize((500, 333)).convert("RGB")
    image.save(tmp_path / "large.png")
    arguments = (str(tmp_path / "large.png"), str(tmp_path / "small.png"), "--factor", "4")
    done = Script(EXAMPLES / "image_resize.py").run(*arguments, nodes=nodes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "500 x 333 became 125 x 84\n"
    with Image.open(tmp_path / "small.png") as small:
        assert small.tobytes() == image.reduce(4).tobytes()


@pytest.mark.parametrize("nodes", [1, 3])
def test_an_interactive_shell(nodes: int) -> None:
    lines = "shared.set_const(two=2)\nlist(futures.map(lambda x: x * shared.get_const('two'), range(5)))\n"
    done = subprocess.run(
        Script(EXAMPLES / "shell.py").command(nodes=nodes),
        input=lines,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "[0, 2, 4, 6, 8]" in done.stdout


def test_every_example_is_run() -> None:
    tested = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested or path.stem in SAYS, path
