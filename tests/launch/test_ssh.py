"""Nodes on other hosts, started through a real ssh server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import TIMEOUT_S, Script, descendants, eventually, nodes_of
from tests.launch.conftest import Server, start_server, stop_server

WriteScript = Callable[..., Script]

# Waits for as many nodes as its first argument says, gives each something to do, and says who did.
WHO = """
    import os, sys, time
    import p2pscoop
    from p2pscoop import futures

    def where(x):
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        print("hello from a task")
        return os.getcwd(), os.environ.get("FROM_PROLOG"), os.environ.get("PYTHONPATH"), os.nice(0), p2pscoop.DEBUG

    while len(p2pscoop.statistics()) < int(sys.argv[1]):
        time.sleep(0.05)
    found = set()
    names = set()
    while len(names) < int(sys.argv[1]):
        found |= set(futures.map(where, range(50)))
        names = {each.name for each in p2pscoop.statistics() if each.executed}
    print(*sorted(names))
    for each in sorted(found, key=repr):
        print("task saw", each)
    sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
"""

# The same by an executor, whose process runs nothing.
WHO_BY_EXECUTOR = """
    import sys, time
    from p2pscoop import Executor

    def where(x):
        time.sleep(0.02)

    with Executor() as executor:
        names = set()
        while len(names) < int(sys.argv[1]):
            list(executor.map(where, range(50)))
            names = {each.name for each in executor.statistics() if each.executed}
    print(*sorted(names))
"""

# Runs until it is stopped.
FOREVER = """
    import time
    import p2pscoop
    from p2pscoop import futures

    while len(p2pscoop.statistics()) < 3:
        time.sleep(0.05)
    print("up", flush=True)
    list(futures.map(time.sleep, [0.05] * 10_000))
"""


def run(script: Script, *options: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pscoop", "run", *options, str(script.path), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def start(script: Script, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "p2pscoop", "run", *options, str(script.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nodes_on_another_host_take_part(script: WriteScript, server: Server) -> None:
    done = run(
        script(WHO),
        *server.options,
        "--hosts",
        "localhost",
        f"{server.host}:2",
        arguments=("3", "7"),
    )
    assert done.returncode == 7, done.stderr
    assert "\n127.0.0.1.1 127.0.0.1.2 origin\n" in done.stdout
    # What they print comes home with their names, that of the script as it is.
    for label in ("[127.0.0.1.1] ", "[127.0.0.1.2] ", ""):
        assert f"\n{label}hello from a task\n" in f"\n{done.stdout}"
    assert f"task saw ({os.getcwd()!r}, None, " in done.stdout
    assert done.stderr == ""


def test_directory_prolog_pythonpath_niceness_and_debug(
    script: WriteScript, server: Server, tmp_path: Path
) -> None:
    prolog = tmp_path / "prolog"
    prolog.write_text("echo noise\nexport FROM_PROLOG='set by the prolog'\n")
    options = [
        *("--prolog", str(prolog), "--pythonpath", "/some/where", "--nice", "3", "--debug", "-q"),
        *("--hosts", "localhost", server.host, *server.options),
    ]
    done = run(script(WHO), *options, arguments=("2",))
    assert done.returncode == 0, done.stderr
    saw = [line for line in done.stdout.splitlines() if line.startswith("task saw")]
    assert saw == [f"task saw ({os.getcwd()!r}, 'set by the prolog', '/some/where', {os.nice(0) + 3}, True)"]


def test_a_hostfile_with_a_port(script: WriteScript, server: Server, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"localhost 1\n{server.host}:{server.port} 1  # ours\n")
    pairs = zip(server.options[::2], server.options[1::2], strict=True)
    options = [word for pair in pairs if not pair[1].startswith("Port=") for word in pair]
    done = run(script(WHO), "--hostfile", str(hosts), *options, arguments=("2",))
    assert done.returncode == 0, done.stderr
    assert "\n127.0.0.1.1 origin\n" in done.stdout


def test_hosts_of_a_scheduler_are_found(
    script: WriteScript, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text(f"localhost\n{server.host}\n{server.host}\n")
    monkeypatch.setenv("PBS_NODEFILE", str(nodes))
    done = run(script(WHO), *server.options, arguments=("3",))
    assert done.returncode == 0, done.stderr
    assert "\n127.0.0.1.1 127.0.0.1.2 origin\n" in done.stdout


# Says what its module has computed, and on which nodes, when the other host has had a part.
WITH_MODULE = """
    import p2pscoop
    from p2pscoop import futures
    from package import helper

    names = set()
    while "127.0.0.1.1" not in names:
        assert set(futures.map(helper.work, range(100))) == set(range(0, 700, 7))
        names = {each.name for each in p2pscoop.statistics() if each.executed}
    print(*sorted(names), max(each.modules_sent for each in p2pscoop.statistics()))
"""


def test_a_host_without_the_programs_directory_gets_its_modules(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    package = directory / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("import time\n\ndef work(x):\n    time.sleep(0.005)\n    return 7 * x\n")
    (directory / "program.py").write_text(textwrap.dedent(WITH_MODULE))
    hidden = f'mount -t tmpfs none {directory} && exec "$@"'
    if subprocess.run(["unshare", "--mount", "sh", "-c", hidden, "sh", "true"], capture_output=True).returncode:
        pytest.skip("NO MOUNT NAMESPACES HERE, so that nothing could be hidden from a host")
    (tmp_path / "ssh").mkdir()
    server = start_server(tmp_path / "ssh", "127.0.0.1", ("unshare", "--mount", "sh", "-c", hidden, "sh"))
    try:
        done = run(Script(directory / "program.py"), *server.options, "--hosts", "localhost", server.host)
    finally:
        stop_server(server)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "127.0.0.1.1 origin 2"


def unknown_key(server: Server) -> tuple[str, ...]:
    return tuple(word.replace(str(server.known_hosts), "/dev/null") for word in server.options)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda server: (*server.options, "--python-interpreter", "/no/such/python"),
            "/no/such/python: not found",
        ),
        (lambda server: (*server.options, "--python-interpreter", "/bin/false"), "ended with status 1"),
        (lambda server: (*server.options, "--prolog", "/dev/full/prolog"), "--prolog"),
        (unknown_key, "Host key verification failed"),
        (lambda server: ("--ssh-option", "ConnectTimeout=5", "--ssh-option", "Port=1"), "Connection refused"),
        (lambda server: (*server.options, "--ssh-executable", "/no/such/ssh"), "/no/such/ssh cannot be started"),
    ],
    ids=["no interpreter", "wrong interpreter", "no prolog", "unknown key", "dead host", "no ssh"],
)
def test_a_host_that_cannot_be_used_stops_the_run_before_the_script(
    script: WriteScript, server: Server, change: Callable[[Server], tuple[str, ...]], problem: str
) -> None:
    program = script("print('the script ran')")
    done = run(program, "--hosts", "localhost:2", server.host, *change(server))
    assert done.returncode != 0
    assert problem in done.stderr
    assert done.stdout == ""
    if "--prolog" not in problem:
        assert done.returncode == 68
        assert f"{server.host} cannot be reached" in done.stderr


def test_the_others_go_on_if_that_is_allowed(script: WriteScript, server: Server) -> None:
    hosts = ("localhost", server.host, "somebody@127.0.0.1:3")
    done = run(script(WHO), "--allow-missing-hosts", *server.options, "--hosts", *hosts, arguments=("2",))
    assert done.returncode == 0, done.stderr
    assert "somebody@127.0.0.1 cannot be reached" in done.stderr
    assert "\n127.0.0.1.1 origin\n" in done.stdout


def remote_processes() -> list[int]:
    return nodes_of("p2pscoop.launch.remote")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_launcher_is_stopped(
    script: WriteScript, server: Server, number: signal.Signals
) -> None:
    before = descendants()
    process = start(script(FOREVER), *server.options, "--hosts", "localhost", f"{server.host}:2")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert len(nodes_of()) == 2
    assert remote_processes()
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    eventually(lambda: descendants() <= before)


def test_a_host_that_is_lost_is_said_and_loses_nothing(script: WriteScript, server: Server) -> None:
    program = script("""
        import os, signal, time
        import p2pscoop
        from p2pscoop import futures

        def work(x):
            time.sleep(0.01)
            return x

        while len(p2pscoop.statistics()) < 3:
            time.sleep(0.05)
        print("up", flush=True)
        print(sum(futures.map(work, range(600))), flush=True)
    """)
    process = start(program, *server.options, "--hosts", "localhost", f"{server.host}:2")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    for pid in remote_processes():
        if b"-P\0-m\0p2pscoop.launch.remote" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert out == f"{sum(range(600))}\n"
    assert re.search(rf"{re.escape(server.host)}: the connection ended with status \d+", err)


def test_nodes_in_another_network_take_part(script: WriteScript, far_servers: list[Server]) -> None:
    """Another host, with an address of its own, and no tunnel: by TLS, with a key that came through ssh."""
    server = far_servers[0]
    done = run(script(WHO), *server.options, "--hosts", "localhost:2", f"{server.host}:2", arguments=("4",))
    assert done.returncode == 0, done.stderr
    assert "\n10.213.1.2.1 10.213.1.2.2 n1 origin\n" in done.stdout
    assert done.stderr == ""
    hosts = ("localhost:1", f"{server.host}:2")
    done = run(script(WHO_BY_EXECUTOR), *server.options, "--hosts", *hosts, arguments=("2",))
    assert (done.returncode, done.stdout, done.stderr) == (0, "10.213.1.2.1 10.213.1.2.2\n", "")


def test_tunnels_between_hosts_that_do_not_reach_each_other(
    script: WriteScript, far_servers: list[Server]
) -> None:
    first, second = far_servers
    known = first.known_hosts.parent / "all"
    known.write_text(first.known_hosts.read_text() + second.known_hosts.read_text())
    keys = [word for server in far_servers for word in ("--ssh-option", f"IdentityFile={server.identity}")]
    options = [
        *("--ssh-option", f"Port={first.port}", "--ssh-option", f"UserKnownHostsFile={known}"),
        *("--ssh-option", "GlobalKnownHostsFile=/dev/null", "--ssh-option", "IdentitiesOnly=yes", *keys),
    ]
    hosts = ("localhost:2", f"{first.host}:2", f"{second.host}:1")
    done = run(script(WHO), "--tunnel", *options, "--hosts", *hosts, arguments=("5",))
    assert done.returncode == 0, done.stderr
    assert "\n10.213.1.2.1 10.213.1.2.2 10.213.2.2.1 n1 origin\n" in done.stdout
    assert done.stderr == ""
    done = run(script(WHO_BY_EXECUTOR), "--tunnel", *options, "--hosts", *hosts, arguments=("4",))
    assert (done.returncode, done.stderr) == (0, ""), "an executor takes the same way"
    assert done.stdout == "10.213.1.2.1 10.213.1.2.2 10.213.2.2.1 n1\n"
