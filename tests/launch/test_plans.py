"""From options, hostfiles and schedulers' environments to hosts and their nodes."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2pscoop.errors import ConfigurationError
from p2pscoop.launch import hostfile, lsf, oar, pbs, sge, slurm
from p2pscoop.launch.hosts import Host, divide, expand, group, parse_option
from p2pscoop.launch.local import is_local
from p2pscoop.launch.plan import Plan, find, make


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[01-03,7]", ["node01", "node02", "node03", "node7"]),
        ("node[098-101]", ["node098", "node099", "node100", "node101"]),
        ("a[1-2],b,c[5]", ["a1", "a2", "b", "c5"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("r[1-2]n[01]-ib", ["r1n01-ib", "r2n01-ib"]),
        ("node[3-3]", ["node3"]),
    ],
)
def test_bracketed_lists(text: str, names: list[str]) -> None:
    assert expand(text, "here") == names


@pytest.mark.parametrize(
    "text", ["node[1-", "node]1[", "node[a-b]", "node[3-1]", "node[]", "", ",", "n[1-9999][1-9999]"]
)
def test_bracketed_lists_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^here: "):
        expand(text, "here")


@pytest.mark.parametrize(
    ("words", "hosts"),
    [
        (["A", "A", "B"], [Host("A", 2), Host("B", 1)]),
        (["A", "B", "A"], [Host("A", 2), Host("B", 1)]),
        (["A:4", "B"], [Host("A", 4), Host("B", 1)]),
        (["A,B:3"], [Host("A", 1), Host("B", 3)]),
        (["me@A", "A"], [Host("me@A", 1), Host("A", 1)]),
        (["n[1-2]:8"], [Host("n1", 8), Host("n2", 8)]),
        (["10.0.0.7:2", "fe80::1"], [Host("10.0.0.7", 2), Host("fe80::1", 1)]),
    ],
)
def test_words_of_hosts(words: list[str], hosts: list[Host]) -> None:
    assert group(host for word in words for host in parse_option(word)) == hosts


@pytest.mark.parametrize("word", ["A:x", "A:0", "A:-1", "A:", ":4", "-oProxyCommand=x", "A B", "A;reboot", "x@-y"])
def test_words_that_are_no_hosts(word: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--hosts"):
        parse_option(word)


def test_hostfiles() -> None:
    text = """
        # the lab
        first 4
        second          # as many as it has cores
        me@third:2222 8
        rack[01-02] 16

        first 2
        me@fourth
    """
    assert hostfile.parse(text, "lab") == [
        Host("first", 6),
        Host("second", None),
        Host("me@third", 8, 2222),
        Host("rack01", 16),
        Host("rack02", 16),
        Host("me@fourth", None),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lab names no host"),
        ("# nothing\n\n", "lab names no host"),
        ("a 4\nb four", "lab, line 2: 'four' is not a number of nodes"),
        ("a 0", "line 1: '0' is not a number"),
        ("a 4 5", "line 1: 'a 4 5' is not a host and a number"),
        ("a:99999 4", "'99999' is not a port"),
        ("a:ssh 4", "'ssh' is not a port"),
        ("a[1- 4", "brackets of 'a\\[1-' do not match"),
        ("-x 4", "'-x' is not the name"),
    ],
)
def test_hostfiles_that_are_wrong(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        hostfile.parse(text, "lab")


A, B, C = Host("A", 2), Host("B", 3), Host("C", None)


@pytest.mark.parametrize(
    ("hosts", "total", "nodes"),
    [
        ([A, B], None, {"A": 2, "B": 3}),
        ([A, B], 5, {"A": 2, "B": 3}),
        ([A, B], 4, {"A": 2, "B": 2}),
        ([A, B], 2, {"A": 2}),
        ([A, B], 1, {"A": 1}),
        ([A, B], 6, {"A": 3, "B": 3}),
        ([A, B], 8, {"A": 4, "B": 4}),
        ([C], None, {"C": None}),
        ([A, C], 2, {"A": 2}),
        ([A, C], 5, {"A": 4, "C": 1}),
        ([C], 4, {"C": 4}),
    ],
)
def test_dividing_nodes_over_hosts(hosts: list[Host], total: int | None, nodes: dict[str, int | None]) -> None:
    assert {host.name: host.nodes for host in divide(hosts, total)} == nodes


def reader(text: str) -> object:
    return lambda variable, path: text


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        ({}, None),
        ({"SLURM_JOB_NODELIST": "n[1-2]"}, [Host("n1"), Host("n2")]),
        (
            {"SLURM_JOB_NODELIST": "n[1-3],m", "SLURM_NTASKS": "7", "SLURM_TASKS_PER_NODE": "2(x3),1"},
            [Host("n1", 2), Host("n2", 2), Host("n3", 2), Host("m", 1)],
        ),
        ({"SLURM_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "4"}, [Host("n1", 4)]),
        (
            {"SLURM_JOB_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "16"},
            [Host("n1", 16)],
        ),
        (
            {"SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n2", "SLURM_STEP_NUM_TASKS": "1"},
            [Host("n1"), Host("localhost")],
        ),
    ],
)
def test_slurm(environment: dict[str, str], hosts: list[Host] | None) -> None:
    assert slurm.hosts(environment) == hosts


@pytest.mark.parametrize("text", ["2(x3)", "x", "2(3)", ""])
def test_slurm_environments_that_do_not_fit(text: str) -> None:
    environment = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": text}
    with pytest.raises(ConfigurationError, match="SLURM_TASKS_PER_NODE="):
        slurm.hosts(environment)


STEP = {
    "SLURM_JOB_ID": "700",
    "SLURM_STEP_ID": "3",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
}


def test_a_command_that_srun_starts_more_than_once() -> None:
    found = slurm.step(STEP)
    assert found is not None
    assert (found.rank, found.size, found.hosts, found.nodes) == (5, 8, ("n2", "n3"), 1)
    others = [slurm.step({**STEP, **more}) for more in ({"SLURM_STEP_ID": "4"}, {"SLURM_JOB_ID": "701"})]
    ports = {each.port for each in (found, *others) if each is not None}
    assert len(ports) == 3
    assert all(20_000 <= port < 30_000 for port in ports)
    cores = slurm.step({**STEP, "SLURM_CPUS_PER_TASK": "4"})
    assert cores is not None
    assert cores.nodes == 4
    assert slurm.step({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert slurm.step({}) is None


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_ID", "SLURM_JOB_ID"])
def test_steps_of_which_something_is_not_said(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"srun started this 8 times, but has not set {name}"):
        slurm.step({key: value for key, value in STEP.items() if key != name})
    with pytest.raises(ConfigurationError, match="SLURM_HET_SIZE"):
        slurm.step({**STEP, "SLURM_HET_SIZE": "2"})


@pytest.mark.parametrize(
    ("scheduler", "environment", "text", "hosts"),
    [
        (pbs, {"PBS_NODEFILE": "f"}, "n1\nn1\nn2\n", [Host("n1", 2), Host("n2", 1)]),
        (pbs, {}, "", None),
        (
            sge,
            {"PE_HOSTFILE": "f"},
            "n1 4 all.q@n1 UNDEFINED\nn2 2 all.q@n2 <NULL>\n",
            [Host("n1", 4), Host("n2", 2)],
        ),
        (sge, {}, "", None),
        (lsf, {"LSB_MCPU_HOSTS": "n1 4 n2 2"}, "", [Host("n1", 4), Host("n2", 2)]),
        (lsf, {"LSB_DJOB_HOSTFILE": "f"}, "n1\nn1\nn2\n", [Host("n1", 2), Host("n2", 1)]),
        (lsf, {"LSB_HOSTS": "n1 n1 n2"}, "", [Host("n1", 2), Host("n2", 1)]),
        (lsf, {}, "", None),
        (oar, {"OAR_NODEFILE": "f"}, "n1\nn2\nn1\n", [Host("n1", 2), Host("n2", 1)]),
        (oar, {"OAR_FILE_NODES": "f"}, "n1\n", [Host("n1", 1)]),
        (oar, {}, "", None),
    ],
)
def test_other_schedulers(
    scheduler: object, environment: dict[str, str], text: str, hosts: list[Host] | None
) -> None:
    assert scheduler.hosts(environment, reader(text)) == hosts  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scheduler", "environment", "text", "problem"),
    [
        (sge, {"PE_HOSTFILE": "f"}, "n1", "has no number of slots"),
        (sge, {"PE_HOSTFILE": "f"}, "n1 many", "'many' is not a number"),
        (lsf, {"LSB_MCPU_HOSTS": "n1 4 n2"}, "", "is not pairs"),
    ],
)
def test_other_schedulers_that_say_nonsense(
    scheduler: object, environment: dict[str, str], text: str, problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        scheduler.hosts(environment, reader(text))  # type: ignore[attr-defined]


def test_what_is_given_wins_over_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("filed 3\n")
    nodes = tmp_path / "nodes"
    nodes.write_text("p1\np1\n")
    environment = {"SLURM_JOB_NODELIST": "s1", "SLURM_TASKS_PER_NODE": "2", "PBS_NODEFILE": str(nodes)}
    assert find(["given"], None, environment) == ([Host("given", 1)], "--hosts")
    assert find([], str(tmp_path / "hosts"), environment) == ([Host("filed", 3)], "--hostfile")
    assert find([], None, environment) == ([Host("s1", 2)], "Slurm")
    del environment["SLURM_JOB_NODELIST"]
    assert find([], None, environment) == ([Host("p1", 2)], "PBS")
    assert find([], None, {}) == (None, "this machine")
    with pytest.raises(ConfigurationError, match="name hosts twice"):
        find(["given"], str(tmp_path / "hosts"), {})


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"PBS_NODEFILE": "/nonexistent"}, "PBS_NODEFILE: /nonexistent cannot be read: No such file"),
        ({"OAR_NODEFILE": "/dev/null"}, "OAR says that this job has hosts, but names none"),
    ],
)
def test_environments_that_lead_nowhere(environment: Mapping[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        make([], None, None, environment)


def test_this_machine_and_others() -> None:
    here = socket.gethostname()
    assert make([], None, 3, {}) == Plan(3, (), "this machine")
    assert make(["localhost:2", here, "far:4"], None, None, {}) == Plan(3, (Host("far", 4),), "--hosts")
    # The script has a node of its own, wherever the others are.
    assert make(["far:4"], None, None, {}) == Plan(1, (Host("far", 4),), "--hosts")
    assert make(["localhost", "far:4"], None, 1, {}) == Plan(1, (), "--hosts")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        (Host("localhost"), True),
        (Host("127.0.0.1"), True),
        (Host("::1"), True),
        (Host(socket.gethostname()), True),
        (Host("127.0.0.2"), False),
        (Host("me@localhost"), False),
        (Host("localhost", 1, 2222), False),
        (Host("elsewhere.example.org"), False),
    ],
)
def test_what_is_this_machine(host: Host, local: bool) -> None:
    assert is_local(host) is local
