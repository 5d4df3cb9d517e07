"""An `Executor` in a script of `p2pscoop run`: it uses the nodes of the run, and leaves them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conftest import Script

WriteScript = Callable[..., Script]

PREAMBLE = """\
import os, signal, sys, threading, time
import p2pscoop
from p2pscoop import Executor, futures, task

def parent(x=0):
    return os.getppid()

def square(x):
    return x * x

def wait_for(nodes):
    while p2pscoop.SIZE < nodes:
        time.sleep(0.05)

LAUNCHER = os.getppid()
"""


def run(script: WriteScript, text: str, nodes: int = 3) -> tuple[str, str]:
    done = script(PREAMBLE + text).run(nodes=nodes)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_it_uses_the_nodes_of_the_run_with_futures_beside_it(script: WriteScript) -> None:
    text = """
wait_for(3)
executor = Executor(7)
print(executor._max_workers)
for _ in range(5):
    # After waiting here, the script's own node may still be taken for one that has nothing to do.
    futures.wait([futures.submit(square, x) for x in range(5)])
    assert list(executor.map(square, range(100))) == list(map(square, range(100)))
assert set(executor.map(parent, range(20))) == {LAUNCHER}
print(executor._max_workers, sorted(each.name for each in executor.statistics()))
under_way = [executor.submit(square, x) for x in range(100)]
mine = [futures.submit(square, x) for x in range(100)]
executor.shutdown(wait=False)
print(sum(each.result() for each in under_way) == sum(each.result() for each in mine))
print(p2pscoop.SIZE, futures.submit(square, 3).result())
"""
    out, err = run(script, text)
    assert out.splitlines() == ["3", "3 ['executor', 'n1', 'n2', 'origin']", "True", "3 9"]
    assert err == ""


def test_several_in_threads_and_one_in_its_own_tasks(script: WriteScript) -> None:
    text = """
def count(executor, depth):
    return 1 if depth == 0 else sum(each.result() for each in [executor.submit(count, executor, depth - 1)] * 2)

found = []
def body(x):
    with Executor() as executor:
        of_the_run = executor.submit(parent).result() == LAUNCHER
        found.append((x, executor.submit(count, executor, 5).result(), of_the_run))

threads = [threading.Thread(target=body, args=(x,)) for x in range(3)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(sorted(found))
"""
    assert run(script, text, nodes=2) == ("[(0, 32, True), (1, 32, True), (2, 32, True)]\n", "")


def test_initializers_are_each_executors_own_and_a_failed_one_costs_no_node(script: WriteScript) -> None:
    text = """
def initialize(x):
    if x == 0:
        raise ValueError("zero")
    os.environ["SET"] = str(x)

def found():
    return os.environ.get("SET")

with Executor(initializer=initialize, initargs=(5,)) as executor:
    print(executor.submit(found).result())
with Executor(initializer=initialize, initargs=(0,)) as broken, Executor() as other:
    print(type(broken.submit(square, 1).exception()).__name__, other.submit(square, 2).result())
wait_for(2)
print(futures.submit(square, 3).result())
"""
    out, err = run(script, text, nodes=2)
    assert out.splitlines() == ["5", "InitializerError 4", "9"]
    assert "the initializer raised ValueError: zero" in err


def test_a_deadly_call_is_given_up_and_the_nodes_are_there_again(script: WriteScript) -> None:
    text = """
def die():
    os.kill(os.getpid(), signal.SIGKILL)

with Executor() as executor:
    print(type(executor.submit(task(die, retries=1)).exception()).__name__)
    wait_for(2)
    print(executor.submit(square, 3).result())
"""
    assert run(script, text, nodes=2)[0].splitlines() == ["PoisonTaskError", "9"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_without_other_nodes_leaves_it_its_own(script: WriteScript, workers: int) -> None:
    text = f"""
with Executor({workers}) as executor:
    print(executor._max_workers, os.getpid() != executor.submit(os.getpid).result())
"""
    assert run(script, text, nodes=1) == (f"{workers} True\n", "")


def test_what_the_script_does_not_wait_for_is_done_before_the_end(script: WriteScript) -> None:
    text = """
def late(x):
    time.sleep(0.2)
    print("late", x)

Executor().submit(late, 1)
"""
    out, err = run(script, text, nodes=2)
    assert (out, err) == ("[n1] late 1\n", "")


def test_what_the_script_imported_is_its_own_after_running_calls_of_its_executor(script: WriteScript) -> None:
    text = """
folder = os.path.join(os.path.dirname(__file__), "late")
os.makedirs(folder)
with open(os.path.join(folder, "found_late.py"), "w") as file:
    print("VALUE = 7", file=file)
sys.path.append(folder)
import found_late

def value(x):
    time.sleep(0.01)
    return found_late.VALUE, os.getpid()

with Executor() as executor:
    pids = set()
    while os.getpid() not in pids:
        # The script waits in `futures`, and so may run calls of the executor itself.
        calls = [executor.submit(value, x) for x in range(50)]
        futures.submit(time.sleep, 0.01).result(timeout=60)
        futures.wait([futures.submit(time.sleep, 0.1) for _ in range(4)])
        pids |= {each.result()[1] for each in calls}
while any(each.name == "executor" for each in p2pscoop.statistics()):
    time.sleep(0.01)
futures.submit(abs, 1).result(timeout=60)
print(sys.modules.get("found_late") is found_late, folder in sys.path, os.getpid() in pids)
"""
    assert run(script, text, nodes=2)[0] == "True True True\n"
