"""The options of `run` that say where and how nodes are started."""

from __future__ import annotations

import pstats
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, Script

from p2pscoop.launch.hosts import Host
from p2pscoop.launch.ssh import Shell, command

WriteScript = Callable[..., Script]

NAMES = """
    import sys, time
    import p2pscoop

    while p2pscoop.SIZE < int(sys.argv[1]):
        p2pscoop.futures.wait([p2pscoop.futures.submit(time.sleep, 0.01)])
    print(*sorted(each.name for each in p2pscoop.statistics()), *sys.argv[2:])
"""


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pscoop", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--hosts", "localhost", "localhost"), "n1 origin"),
        (("--host", "localhost:3", "-n", "2"), "n1 origin"),
        (("-n", "3", "--host", "localhost"), "n1 n2 origin"),
        (("--hosts=localhost:2",), "n1 origin"),
        (("--hosts", "localhost,localhost", "--"), "n1 origin"),
    ],
)
def test_hosts_end_at_the_next_option_or_at_the_script(
    script: WriteScript, options: tuple[str, ...], names: str
) -> None:
    size = str(len(names.split()))
    done = run(*options, str(script(NAMES).path), size, "--hosts", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{names} --hosts x\n"


def test_what_is_about_brokers_is_accepted_with_a_line_each(script: WriteScript) -> None:
    done = run("-n", "1", "-b", "2", "--backend", "ZMQ", str(script("print('done')").path))
    assert done.returncode == 0
    assert done.stdout == "done\n"
    assert done.stderr.splitlines() == [
        f"p2pscoop: {option} is not needed: there is no broker, nodes talk to each other"
        for option in ("-b", "--backend")
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("-n", "0"), "0 is not in the range 1<=x<=10000"),
        (("-n", "99999999"), "99999999 is not in the range 1<=x<=10000"),
        (("--nice", "50"), "50 is not in the range -20<=x<=19"),
        (("--nice", "much"), "'much' is not a valid integer"),
        (("--hosts",), "--hosts: no host is named"),
        (("--hosts", "-n", "2"), "--hosts: no host is named"),
        (("--hosts", "a:b"), "'b' is not a number of nodes"),
        (("--hosts", "n[1-"), "brackets of 'n[1-' do not match"),
        (("--hostfile", "/no/such/file"), "--hostfile: /no/such/file cannot be read: No such file"),
        (("--hostfile", "/dev/null"), "/dev/null names no host"),
        (("--hostfile", "/dev/null", "--hosts", "a"), "--hosts and --hostfile name hosts twice"),
        (("--hosts", "localhost", "--key-file", "/no/such"), "key file /no/such: No such file"),
        (("--tunnel", "--rsh"), "--tunnel needs ssh"),
        (("--prolog", "/no/such/prolog"), "--prolog: /no/such/prolog ended with status"),
        (("--prolog", "/"), "--prolog: / is a directory, not a shell script"),
        (
            ("--ssh-option", "much", "--tunnel", "--insecure", "--hosts", "far:1"),
            'no argument after keyword "much"',
        ),
        (("--speed", "9"), "No such option"),
    ],
)
def test_wrong_values(script: WriteScript, options: tuple[str, ...], problem: str) -> None:
    done = run(*options, str(script("print('ran')").path))
    assert done.returncode != 0
    assert problem in " ".join(done.stderr.split())
    assert done.stdout == ""


@pytest.mark.parametrize("options", [(), ("-n", "2"), ("-n", "2", "--hosts", "localhost", "localhost"), ("--",)])
def test_without_a_script_the_next_step_is_told(options: tuple[str, ...]) -> None:
    done = run("run", *options)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "SCRIPT is missing" in said
    assert "`p2pscoop join --listen ADDR:PORT`" in said
    assert "P2PSCOOP_SEED=ADDR:PORT" in said


def test_a_script_that_is_taken_for_a_host() -> None:
    done = run("run", "--hosts", "localhost", "/no/such/program")
    assert done.returncode == 2
    assert "no file is called '/no/such/program', so it is a host" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (b"def f(:\n", 'File "{path}", line 1\n    def f(:\n'),
        (b"pass\n\0", "SyntaxError: there are null bytes in it, so it is not Python (program.py)"),
        (b"x = '\xff'\n", "{path}"),
        (b"import nosuchmodule\n", 'File "{path}", line 1, in <module>'),
    ],
    ids=["syntax", "null bytes", "encoding", "import"],
)
def test_a_script_that_cannot_be_run(tmp_path: Path, source: bytes, problem: str) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(source)
    done = run("-n", "2", str(path))
    assert done.returncode == 1
    assert problem.format(path=path) in done.stderr
    assert "p2pscoop/_" not in done.stderr


def test_tunnels_need_to_know_how_many(tmp_path: Path, script: WriteScript) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("far.example\n")
    done = run("--tunnel", "--hostfile", str(hosts), str(script("print('ran')").path))
    assert done.returncode == 2
    assert "say how many there are on far.example" in " ".join(done.stderr.split())


def test_verbose_says_who_comes_and_quiet_does_not(script: WriteScript) -> None:
    program = str(script(NAMES).path)
    for options, said in ((("-v",), True), ((), False), (("-q",), False), (("-v", "-q"), False)):
        done = run("-n", "2", *options, program, "2")
        assert done.returncode == 0, done.stderr
        assert ("origin: n1 is there" in done.stderr) is said


def test_a_profile_for_each_node(script: WriteScript, tmp_path: Path) -> None:
    program = script("""
        import time
        import p2pscoop
        from p2pscoop import futures

        def leaf():
            until = time.perf_counter() + 0.01
            while time.perf_counter() < until:
                pass

        def branch(depth):
            if depth == 0:
                return leaf()
            for future in [futures.submit(branch, depth - 1) for _ in range(2)]:
                future.result()

        async def steps():
            for _ in range(5):
                await futures.submit(leaf)

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.01)
        futures.submit(branch, 6).result()
        futures.wait([futures.submit(steps) for _ in range(4)])
    """)
    done = run("-n", "3", "--profile", str(program.path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    profiles = sorted((tmp_path / "profile").iterdir())
    assert [each.name for each in profiles] == ["n1.prof", "n2.prof", "origin.prof"]
    calls = {"leaf": 0, "branch": 0, "steps": 0}
    for path in profiles:
        for (_, _, name), (_, count, *_) in pstats.Stats(str(path)).stats.items():  # type: ignore[attr-defined]
            if name in calls:
                calls[name] += count
    # A coroutine counts once for each time that it goes on.
    assert calls["leaf"] == 64 + 20
    assert calls["branch"] == 127
    assert calls["steps"] >= 4


def test_the_command_of_a_host_is_quoted() -> None:
    shell = Shell(
        options=("A=b",),
        directory="/a dir",
        interpreter="/opt/py thon",
        pythonpath="x'y",
        prolog="/p q",
        rsh=False,
    )
    words = command(shell, Host("me@far", 2, 2222), forwards=[5], reverse_forwards=[6])
    assert words[:2] == ["ssh", "-T"]
    assert words[-3:-1] == ["--", "me@far"]
    assert "127.0.0.1:5:127.0.0.1:5" in words
    assert "127.0.0.1:6:127.0.0.1:6" in words
    # A shell that runs it gets the words back.
    inner = subprocess.run(
        ["sh", "-c", f"set -- {words[-1]}; printf '%s\\n' \"$4\""], capture_output=True, text=True, check=True
    ).stdout
    for part in ("cd '/a dir'", ". '/p q'", "exec '/opt/py thon' -P -m p2pscoop.launch.remote"):
        assert part in inner


def test_the_command_for_rsh() -> None:
    assert command(Shell(rsh=True), Host("me@far", 2))[:4] == ["rsh", "-l", "me", "far"]
