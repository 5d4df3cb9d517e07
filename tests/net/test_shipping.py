"""Modules of a program that the nodes' machine does not have: they come from the origin."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.conftest import TIMEOUT_S, eventually

from p2pscoop import _sources
from p2pscoop._attachment import SEED_VARIABLE
from p2pscoop._security import CLUSTER_VARIABLE, KEY_VARIABLE, ClusterKey
from p2pscoop._shipping import SourceCache
from p2pscoop._sources import (
    Kind,
    Place,
    Sources,
    ask_names,
    ask_place,
    ask_source,
    digest_of,
    is_within,
    places_of,
    read_names,
    read_place,
)
from p2pscoop.errors import RemoteProtocolError

# ------------------------------------------------------------------------------------- the whole way


def can_hide_directories() -> bool:
    try:
        done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(
    not can_hide_directories(), reason="NO MOUNT NAMESPACES HERE, so that nothing could be hidden from the nodes"
)


class World:
    """A standing cluster whose machine does not see the directories of the programs, and those programs."""

    def __init__(self, root: Path) -> None:
        self.programs = root / "programs"
        self.elsewhere = root / "elsewhere"
        self.programs.mkdir()
        self.elsewhere.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.seed = f"127.0.0.1:{probe.getsockname()[1]}"
        self._cluster: subprocess.Popen[str] | None = None

    def start(self, nodes: int = 1, *, hidden: bool = True, then: str = "true", **environment: str) -> None:
        """Start the cluster.

        Args:
            nodes: how many.
            hidden: whether it finds the directory of the programs empty.
            then: command of the shell that changes what it finds.
            environment: for it.
        """
        command = [sys.executable, "-m", "p2pscoop", "join", "--listen", self.seed, "-n", str(nodes)]
        if hidden:
            inside = (
                f"mount -t tmpfs none {shlex.quote(str(self.programs))} && {then} && exec {shlex.join(command)}"
            )
            command = ["unshare", "--mount", "sh", "-c", inside]
        self._cluster = subprocess.Popen(
            command,
            cwd=self.elsewhere,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        eventually(self._listens)

    def _listens(self) -> bool:
        host, _, port = self.seed.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.send_signal(signal.SIGTERM)
            self._cluster.wait(TIMEOUT_S)

    def write(self, files: dict[str, str], program: str = "one") -> Path:
        directory = self.programs / program
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(textwrap.dedent(text))
        return directory

    def popen(self, directory: Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *(arguments or ("program.py",))],
            cwd=directory,
            env={**os.environ, SEED_VARIABLE: self.seed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, directory: Path, *arguments: str) -> Any:
        """What the program printed, which is JSON."""
        process = self.popen(directory, *arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        return json.loads(out)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv(KEY_VARIABLE, ClusterKey.generate().to_text())
    monkeypatch.setenv(CLUSTER_VARIABLE, "ships")
    made = World(tmp_path)
    yield made
    made.stop()


# Starts each program: calls run in nodes only, and never in the process that submits them.
EXECUTOR = """
    import json, os
    from p2pscoop import Executor
"""

PACKAGE = {
    "helper.py": """
        VALUE = 7
        started = []

        def work(x):
            return VALUE * x

        def start(word):
            started.append(word)

        def seen():
            return started, __file__

        def fail():
            raise ValueError("on purpose")  # this line
    """,
    "package/__init__.py": "from . import part\n",
    "package/part.py": "from package.inner.deep import DEPTH\n\ndef depth():\n    return DEPTH\n",
    "package/inner/__init__.py": "",
    "package/inner/deep.py": "DEPTH = 3\n",
    "spaces/ship/cargo.py": "class Box:\n    def __init__(self, x):\n        self.x = x\n",
    "lazy.py": "def work():\n    import late\n    return late.VALUE\n",
    "late.py": "VALUE = 'late'\n",
    "tree.py": """
        from p2pscoop import futures

        def fib(n):
            return n if n < 2 else futures.submit(fib, n - 1).result() + futures.submit(fib, n - 2).result()
    """,
}


@needs_mounts
def test_modules_come_to_nodes_that_do_not_have_them(world: World) -> None:
    world.start(nodes=2)
    directory = world.write(
        {
            **PACKAGE,
            "program.py": EXECUTOR
            + """
    import helper, lazy, package.part, tree
    from spaces.ship.cargo import Box

    def exists(file):
        return os.path.exists(file)

    with Executor(initializer=helper.start, initargs=("go",)) as executor:
        results = {
            "exists": executor.submit(exists, helper.__file__).result(),
            "module": sorted(set(executor.map(helper.work, range(40)))) == [7 * x for x in range(40)],
            "seen": executor.submit(helper.seen).result(),
            "package": executor.submit(package.part.depth).result(),
            "namespace": executor.submit(Box, 5).result().x,
            "lazy": executor.submit(lazy.work).result(),
            "nested": executor.submit(tree.fib, 12).result(),
        }
        error = executor.submit(helper.fail).exception()
        results["traceback"] = str(error.__cause__)
        results["sent"] = max(each.modules_sent for each in executor.statistics())
    print(json.dumps(results))
    """,
        }
    )
    results = world.run(directory)
    assert results["exists"] is False
    assert results["module"] is True
    assert results["seen"] == [["go"], str(directory / "helper.py")]
    assert (results["package"], results["namespace"], results["lazy"], results["nested"]) == (3, 5, "late", 144)
    # Tracebacks show what is in no file of that machine.
    assert 'raise ValueError("on purpose")  # this line' in results["traceback"]
    assert 1 <= results["sent"] <= 2 * 8


@needs_mounts
def test_a_second_run_sends_only_what_has_changed(world: World) -> None:
    world.start()
    program = (
        EXECUTOR
        + """
    import helper, other
    with Executor() as executor:
        results = [executor.submit(helper.work, 2).result(), executor.submit(other.work).result()]
        print(json.dumps([*results, executor.statistics()[0].modules_sent]))
    """
    )
    files = {"helper.py": PACKAGE["helper.py"], "other.py": "def work():\n    return 1\n", "program.py": program}
    assert world.run(world.write(files)) == [14, 1, 2]
    # The functions have the same pickles as before; their modules have not.
    files["other.py"] = "def work():\n    return 2\n"
    assert world.run(world.write(files)) == [14, 2, 1]


@needs_mounts
def test_a_program_that_is_a_module_of_a_package(world: World) -> None:
    world.start()
    directory = world.write(
        {
            "package/__init__.py": "",
            "package/side.py": "VALUE = 'beside'\n",
            "package/prog.py": EXECUTOR
            + """
    def work():
        from .side import VALUE
        return VALUE

    if __name__ == "__main__":
        with Executor() as executor:
            print(json.dumps(executor.submit(work).result()))
    """,
        }
    )
    assert world.run(directory, "-m", "package.prog") == "beside"


@needs_mounts
def test_directories_that_are_added_and_modules_that_are_written_while_the_program_runs(world: World) -> None:
    world.start()
    directory = world.write(
        {
            "library/added.py": "VALUE = 'added'\n",
            "program.py": EXECUTOR
            + """
    import sys

    def work(name):
        return __import__(name).VALUE

    with Executor() as executor:
        executor.submit(work, "os").exception()
        with open("written.py", "w") as file:
            file.write("VALUE = 'written'")
        sys.path.append(os.path.abspath("library"))
        print(json.dumps([executor.submit(work, name).result() for name in ("written", "added")]))
    """,
        }
    )
    assert world.run(directory) == ["written", "added"]


@needs_mounts
def test_what_is_not_sent_is_said(world: World) -> None:
    world.start()
    directory = world.write(
        {
            "broken.so": "",
            "helper.py": "import pkgutil\n\ndef read():\n    return pkgutil.get_data('helper', 'data.txt')\n",
            "data.txt": "data",
            "program.py": EXECUTOR
            + """
    import sys, zipfile
    import helper

    def work(name):
        __import__(name)

    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    sys.path.append(os.path.abspath("archive.zip"))
    calls = [(work, "broken"), (work, "zipped"), (work, "nowhere"), (helper.read,)]
    with Executor() as executor:
        errors = [executor.submit(*call).exception() for call in calls]
    print(json.dumps([[type(error).__name__, str(error)] for error in errors]))
    """,
        }
    )
    compiled, zipped, nowhere, data = world.run(directory)
    assert compiled[0] == "ModuleNotFoundError"
    assert f"has it as {directory / 'broken.so'}, and only Python source is sent" in compiled[1]
    assert zipped[0] == "ModuleNotFoundError"
    assert f"has it as {directory / 'archive.zip' / 'zipped.py'}, and only" in zipped[1]
    assert nowhere == ["ModuleNotFoundError", "No module named 'nowhere'"]
    assert data[0] == "FileNotFoundError"
    assert "no data files; use p2pscoop.shared" in data[1]


MISMATCH = {
    "helper.py": PACKAGE["helper.py"],
    "late.py": "VALUE = 'own'\n",
    "program.py": EXECUTOR
    + """
    import helper

    def inside():
        import late
        return late.VALUE

    with Executor() as executor:
        errors = [executor.submit(helper.work, 1).exception(), executor.submit(inside).exception()]
    print(json.dumps([[type(error).__name__, str(error)] for error in errors]))
    """,
}


def test_of_two_modules_of_one_name_that_of_the_programs_directory_counts(world: World) -> None:
    world.start(hidden=False, PYTHONPATH=str(world.elsewhere))
    (world.elsewhere / "helper.py").write_text("def work(x):\n    return 'other'\n")
    (world.elsewhere / "late.py").write_text("VALUE = 'other'\n")
    assert world.run(world.write(MISMATCH)) == [["NoneType", "None"], ["NoneType", "None"]]


@needs_mounts
def test_a_copy_of_the_directory_with_other_content_is_an_error(world: World) -> None:
    directory = world.programs / "one"
    world.start(then=f"mkdir {directory} && echo 'VALUE = 0' >{directory}/helper.py")
    (error, text), (late, _) = world.run(world.write(MISMATCH))
    assert error == "CodeMismatchError"
    assert text.count(f"{directory}/helper.py") == 2
    # What the copy lacks is sent.
    assert late == "NoneType"


@needs_mounts
def test_another_module_that_only_the_node_has_is_an_error(world: World) -> None:
    world.start(PYTHONPATH=str(world.elsewhere))
    (world.elsewhere / "helper.py").write_text("def work(x):\n    return 'other'\n")
    (world.elsewhere / "late.py").write_text("VALUE = 'other'\n")
    directory = world.write(MISMATCH)
    errors = world.run(directory)
    for (kind, text), name in zip(errors, ("helper", "late"), strict=True):
        assert kind == "CodeMismatchError"
        assert f"the module {name} is not the same on all nodes" in text
        assert str(directory / f"{name}.py") in text
        assert str(world.elsewhere / f"{name}.py") in text
        assert "rename the module" in text


def test_an_edit_while_the_program_runs_changes_nothing(world: World) -> None:
    world.start(hidden=False)
    directory = world.write(
        {
            "helper.py": PACKAGE["helper.py"],
            "program.py": EXECUTOR
            + """
    import helper
    with Executor() as executor:
        executor.submit(os.getpid).result()
        with open("helper.py", "a") as file:
            file.write("VALUE = 8")
        print(json.dumps(executor.submit(helper.work, 1).result()))
    """,
        }
    )
    # The node, which sees the same file, gets what the origin has read before.
    assert world.run(directory) == 7
    assert world.run(directory) == 8


# Works when told to by a line, prints what came of it, and ends with its input.
TALKER = (
    EXECUTOR
    + """
    import sys
    import helper
    with Executor() as executor:
        for line in sys.stdin:
            try:
                answer = None, executor.submit(helper.work, 1).result()
            except Exception as error:
                answer = type(error).__name__, str(error)
            print(json.dumps(answer), flush=True)
    """
)


@needs_mounts
def test_programs_at_once_with_modules_of_the_same_name(world: World) -> None:
    world.start()
    helpers = {"one": "VALUE = 1", "same": "VALUE = 1", "other": "VALUE = 2"}
    work = "\n\ndef work(x):\n    return VALUE * x\n"
    with contextlib.ExitStack() as stack:
        talkers = {}
        for name, text in helpers.items():
            directory = world.write({"helper.py": text + work, "program.py": TALKER}, name)
            talkers[name] = stack.enter_context(world.popen(directory))

        def ask(name: str) -> Any:
            talker = talkers[name]
            assert talker.stdin is not None
            assert talker.stdout is not None
            talker.stdin.write("work\n")
            talker.stdin.flush()
            return json.loads(talker.stdout.readline())

        def end(name: str) -> None:
            _, err = talkers[name].communicate(timeout=TIMEOUT_S)
            assert talkers[name].returncode == 0, err

        assert ask("one") == [None, 1]
        assert ask("same") == [None, 1]
        kind, text = ask("other")
        assert kind == "CodeMismatchError"
        assert "two programs have different modules of the name helper" in text
        assert str(world.programs / "other" / "helper.py") in text
        end("one")
        # It is the other program's still.
        assert ask("same") == [None, 1]
        assert ask("other")[0] == "CodeMismatchError"
        end("same")
        answers = [ask("other")]
        while answers[-1][0] is not None:
            # The node hears of an end after the process that it was.
            assert answers[-1][0] == "CodeMismatchError"
            answers.append(ask("other"))
        assert answers[-1] == [None, 2]
        end("other")


# ------------------------------------------------------------------------- what the origin gives out


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of this process's program, with a file outside of it."""
    directory = tmp_path / "own"
    (directory / "package").mkdir(parents=True)
    (directory / "plain.py").write_text("PLAIN = 1\n")
    (directory / "package" / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    (directory / "package" / "part.py").write_text("PART = 1\n")
    (directory / "secret.txt").write_text("secret")
    (tmp_path / "outside.py").write_text("OUTSIDE = 1\n")
    monkeypatch.syspath_prepend(directory)
    return directory


def place_of(sources: Sources, name: str) -> Place | None:
    return read_place(sources.answer(ask_place(name)))


def test_the_origin_gives_out_modules_of_its_own_directories_only(own: Path) -> None:
    sources = Sources()
    names, places = read_names(sources.answer(ask_names()))
    assert not places
    assert names is not None
    assert {"plain", "package"} <= names
    assert not names & {"secret", "json", "msgpack", "p2pscoop"}
    plain = place_of(sources, "plain")
    assert plain == Place(Kind.MODULE, str(own / "plain.py"), digest_of(b"PLAIN = 1\n"))
    assert sources.answer(ask_source("plain", plain.digest)) == b"PLAIN = 1\n"
    # Nothing is imported to answer.
    part = place_of(sources, "package.part")
    assert part == Place(Kind.MODULE, str(own / "package" / "part.py"), digest_of(b"PART = 1\n"))
    assert "package" not in sys.modules
    wrong = ["../outside", "..outside", ".plain", "plain.", "own/plain", "/etc/passwd", "secret", "secret.txt", ""]
    wrong += ["json", "json.decoder", "msgpack", "p2pscoop", "p2pscoop.errors", "__main__", "sys", "plain.nothing"]
    for name in wrong:
        assert place_of(sources, name) is None, name
        assert sources.answer(ask_source(name, digest_of(b"secret"))) == b"", name
    # By a wrong hash nothing is to be had either.
    assert sources.answer(ask_source("plain", digest_of(b""))) == b""


def test_what_has_been_imported_is_told_with_the_names(own: Path) -> None:
    sources = Sources()
    part = importlib.import_module("plain")
    try:
        sources.note_imported()
        (own / "plain.py").write_text("PLAIN = 2\n")
        _, places = read_names(sources.answer(ask_names()))
        assert places["plain"] == Place(Kind.MODULE, part.__file__, digest_of(b"PLAIN = 1\n"))
        assert "json" not in places
    finally:
        del sys.modules["plain"]


def test_what_was_read_first_counts(own: Path) -> None:
    sources = Sources()
    before = place_of(sources, "plain")
    assert before is not None
    (own / "plain.py").write_text("PLAIN = 2\n")
    assert place_of(sources, "plain") == before._replace(edited=digest_of(b"PLAIN = 2\n"))
    assert sources.answer(ask_source("plain", before.digest)) == b"PLAIN = 1\n"


@pytest.mark.parametrize("words", [None, 5, [], ["place"], ["place", b"name"], ["source", "a"], ["delete", "a"]])
def test_questions_that_are_none_are_refused(words: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Sources().answer(_sources.MARK + msgpack.packb(words))
    with pytest.raises(RemoteProtocolError):
        Sources().answer(_sources.MARK + b"\xc1")


def test_too_many_names_and_too_large_sources(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sources, "NAMES_MAX", 1)
    monkeypatch.setattr(_sources, "SOURCE_MAX", 5)
    sources = Sources()
    assert read_names(sources.answer(ask_names()))[0] is None
    place = place_of(sources, "plain")
    assert place is not None
    assert place.kind == Kind.OTHER


def test_installed_packages_are_not_a_programs_own() -> None:
    own, others = places_of(
        ["", "/home/u/project", "/home/u/env/lib/python3/site-packages", os.path.dirname(os.__file__)]
    )
    assert own == [os.getcwd(), "/home/u/project"]
    assert len(others) == 2
    assert not is_within("/home/u/project/env/site-packages/x.py", own, others)


def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    cache = SourceCache(100)
    texts = [bytes([number]) * 40 for number in range(3)]
    first, second, third = map(digest_of, texts)
    cache.put(first, texts[0])
    cache.put(second, texts[1])
    assert cache.get(first) == texts[0]
    cache.put(third, texts[2])
    assert cache.size == 80
    assert cache.get(second) is None
    assert cache.get(first) == texts[0]
    cache.put(digest_of(bytes(101)), bytes(101))
    assert cache.size == 0
