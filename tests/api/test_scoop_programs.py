"""Programs for SCOOP's public API, with `scoop` standing for `p2pscoop` on every node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Script

WriteScript = Callable[..., Script]

ALIAS = """
    import sys
    import p2pscoop
    sys.modules["scoop"] = p2pscoop
"""

WORK = """
    import operator, time
    import scoop
    from scoop import futures, shared

    def busy(x):
        import scoop as inside
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        return inside.worker, x
"""

PROGRAMS = {
    "map, in order and as completed": """
        assert [x for _, x in futures.map(busy, range(30))] == list(range(30))
        assert sorted(x for _, x in futures.map_as_completed(busy, range(30))) == list(range(30))
        assert list(futures.map(operator.add, [1, 2], [3, 4])) == [4, 6]
    """,
    "submit with keywords, wait and as_completed": """
        def power(base, exponent=1):
            return base ** exponent
        fs = [futures.submit(power, n, exponent=2) for n in range(10)]
        done, not_done = futures.wait(fs, timeout=-1, return_when=futures.ALL_COMPLETED)
        assert len(done) == 10 and not not_done
        first = futures.wait([futures.submit(busy, n) for n in range(5)], return_when=futures.FIRST_COMPLETED)
        assert len(first.done) >= 1
        assert futures.wait(fs, timeout=0).not_done == set()
        assert sorted(f.result() for f in futures.as_completed(fs)) == [n * n for n in range(10)]
        assert all(f.done() and not f.cancelled() and not f.running() and f.exception() is None for f in fs)
    """,
    "mapReduce and mapScan": """
        assert futures.mapReduce(abs, operator.add, range(-50, 50)) == 2500
        assert futures.mapScan(abs, operator.add, [1, -2, 3]) == [1, 3, 6]
    """,
    "callbacks": """
        seen = []
        fs = [futures.submit(busy, n) for n in range(4)]
        for f in fs:
            f.add_done_callback(lambda f: seen.append(f.result()[1]))
        for f in futures.as_completed(fs):
            pass
        assert sorted(seen) == [0, 1, 2, 3]
    """,
    "nested exceptions": """
        def inner(x):
            raise KeyError(x)
        def outer(x):
            return list(futures.map(inner, [x]))
        f = futures.submit(outer, "lost")
        try:
            f.result()
        except KeyError as error:
            assert error.args == ("lost",)
        else:
            raise AssertionError
        assert isinstance(f.exception(), KeyError)
    """,
    "shared constants and functions": """
        shared.setConst(table={"a": 1}, twice=lambda x: 2 * x)
        def look(x):
            from scoop import shared as here
            busy(x)
            return here.getConst("twice")(here.getConst("table", timeout=5)["a"]) + x
        assert list(futures.map(look, range(20))) == [2 + x for x in range(20)]
        try:
            shared.setConst(table=2)
        except TypeError:
            pass
        else:
            raise AssertionError
        assert shared.getConst("nothing") is None
    """,
    "constants of the package": """
        assert scoop.IS_ORIGIN is True and scoop.IS_RUNNING is True and scoop.DEBUG is False
        assert scoop.BROKER is None and scoop.MAIN_MODULE == __file__ and isinstance(scoop.CONFIGURATION, dict)
        scoop.logger.warning("a warning")
        workers = {worker for worker, _ in futures.map(busy, range(40))}
        assert scoop.worker in workers and len(workers) == scoop.SIZE == 2
    """,
    "import of a submodule by name": """
        import scoop.futures, scoop.shared
        assert list(scoop.futures.map(abs, [-1])) == [1]
        scoop.shared.setConst(one=1)
        assert futures.submit(shared.getConst, "one").result() == 1
    """,
}


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_scoop(script: WriteScript, tmp_path: Path, name: str, guarded: bool) -> None:
    alias = tmp_path / "alias"
    alias.mkdir()
    Script(alias / "sitecustomize.py").path.write_text("\n".join(line.strip() for line in ALIAS.splitlines()))
    body = PROGRAMS[name]
    start = """
    import p2pscoop
    while p2pscoop.SIZE < 2:
        futures.wait([futures.submit(time.sleep, 0.01)])
    """
    lines = [line[4:] for line in (WORK + start).splitlines()] + (
        ["if __name__ == '__main__':"] if guarded else []
    )
    indent = 4 if guarded else 8
    text = "\n".join([*lines, *(line[indent:] for line in body.splitlines()), "print('passed')"])
    (tmp_path / "program.py").write_text(text)
    done = Script(tmp_path / "program.py").run(nodes=2, env={"PYTHONPATH": str(alias)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "passed\n"
