"""Jobs of a real Slurm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY, TIMEOUT_S, Script, eventually
from tests.launch.slurm_cluster import Cluster, running

WriteScript = Callable[..., Script]

# Works until all nodes have taken part, and says who they were.
WHO = """
    import sys, time
    import p2pscoop
    from p2pscoop import futures

    def work(x):
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass
        return x

    size = int(sys.argv[1])
    names = set()
    while len(names) < size:
        assert sum(futures.map(work, range(100))) == 4950
        names = {each.name for each in p2pscoop.statistics() if each.executed}
    print(*sorted(names), flush=True)
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def submit(cluster: Cluster, output: Path, *words: str, **variables: str) -> str:
    """The number of a new job."""
    return cluster.run("sbatch", "--parsable", f"--output={output}", *words, **variables).strip()


def test_the_submit_file_runs_on_all_hosts_of_the_job(
    cluster: Cluster, script: WriteScript, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = ("--nodes=2", "--ntasks-per-node=2", str(REPOSITORY / "docs" / "submit" / "slurm.sh"), "4", "7")
    job = cluster.finish(submit(cluster, output, *words, SCRIPT=str(script(WHO).path)))
    assert output.read_text() == "h2.1 h2.2 n1 origin\n"
    assert job["NodeList"] == "h[1-2]"
    # The status of the job is that of the script.
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "7:0")


def test_a_job_may_begin_on_any_of_its_hosts(cluster: Cluster, script: WriteScript) -> None:
    program = str(script(WHO).path)
    words = ("srun", "--nodes=1", "--ntasks=1", "--nodelist=h2", "p2pscoop", "run", "-n", "2", program, "2", "0")
    assert cluster.run(*words) == "n1 origin\n"


def test_srun_starts_all_nodes_and_one_runs_the_script(
    cluster: Cluster, script: WriteScript, tmp_path: Path
) -> None:
    key = f"--key-file={tmp_path / 'key'}"
    cluster.run("p2pscoop", "keygen", key)
    quick = script("import p2pscoop, sys; print('ran with', p2pscoop.SIZE); sys.exit(3)", "quick.py")
    srun = ("srun", "--nodes=2", "--ntasks=2", "--quiet")
    done = cluster.attempt(*srun, "p2pscoop", "run", key, str(quick.path))
    # However short it is, it starts when all are there.
    assert (done.returncode, done.stdout) == (3, "ran with 2\n"), done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("srun: ")] == [
        "p2pscoop: the computation has ended"
    ]
    program = str(script(WHO).path)
    out = cluster.run(*srun, "--cpus-per-task=2", "p2pscoop", "run", key, program, "4", "0")
    assert re.fullmatch(r"j\d+\.1 j\d+\.2 n1 origin\n", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no key of the cluster"),
        (("-n", "2"), "srun starts this 2 times, and so says itself where nodes run"),
        (("--host", "h1", "h2", "--"), "srun starts this 2 times, and so says itself where nodes run"),
    ],
)
def test_what_srun_needs(
    cluster: Cluster, script: WriteScript, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    program = str(script("print('ran')").path)
    command = ("srun", "--nodes=2", "--ntasks=2", "p2pscoop", "run", *options, program)
    done = cluster.attempt(*command, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "ran" not in done.stdout
    assert message in " ".join(done.stderr.split())


def test_nodes_leave_when_slurm_says_that_time_is_nearly_up(
    cluster: Cluster, script: WriteScript, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    program = script("""
        import os, sys, time
        import p2pscoop
        from p2pscoop import futures

        def work(x):
            time.sleep(0.01)
            return x

        def executed():
            return {each.name for each in p2pscoop.statistics() if each.executed}

        said = False
        while not os.path.exists(sys.argv[1]):
            assert sum(futures.map(work, range(100))) == 4950
            if not said and len(executed()) == 3:
                said = True
                print("all work", flush=True)
        print("size", p2pscoop.SIZE)
    """)
    key = f"--key-file={tmp_path / 'key'}"
    cluster.run("p2pscoop", "keygen", key)
    computation = cluster.start(
        "p2pscoop", "run", "-n", "1", "--listen", "h1:7700", key, str(program.path), str(stop)
    )
    try:
        assert computation.stdout is not None
        output = tmp_path / "out"
        job = submit(
            cluster,
            output,
            "--nodelist=h2",
            "--ntasks=1",
            f"--wrap=exec srun p2pscoop join --seed h1:7700 {key} -n 2",
        )
        assert computation.stdout.readline() == "all work\n"
        # What --signal=USR1@60 does, at a time that the test chooses.
        cluster.run("scancel", "--signal=USR1", job)
        ended = cluster.finish(job)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), output.read_text()
        assert not re.search("killed|lost", output.read_text())
        stop.touch()
        out, err = computation.communicate(timeout=TIMEOUT_S)
        assert (computation.returncode, out) == (0, "size 1\n"), err
    finally:
        if computation.poll() is None:
            computation.kill()
            computation.communicate()


def test_the_script_is_told_that_time_is_nearly_up(cluster: Cluster, script: WriteScript, tmp_path: Path) -> None:
    program = script("""
        import signal, sys, time
        from p2pscoop import futures

        class TimeIsUp(BaseException):
            pass

        def stop(*_):
            raise TimeIsUp

        signal.signal(signal.SIGUSR1, stop)
        print("up", flush=True)
        try:
            while True:
                futures.submit(abs, -1).result()
                time.sleep(0.01)
        except TimeIsUp:
            print("saved")
            sys.exit(3)
    """)
    output = tmp_path / "out"
    submit_file = str(REPOSITORY / "docs" / "submit" / "slurm.sh")
    words = ("--nodes=1", "--ntasks-per-node=2", submit_file)
    job = submit(cluster, output, *words, SCRIPT=str(program.path))
    eventually(lambda: output.exists() and "up\n" in output.read_text(), within_s=TIMEOUT_S)
    # What --signal=B:USR1@60 does.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    ended = cluster.finish(job)
    assert output.read_text() == "up\nsaved\n"
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
