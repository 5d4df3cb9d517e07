"""Nesting is bounded by no stack."""

from __future__ import annotations

from collections.abc import Callable


def test_a_chain_of_blocking_tasks(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        def chain(n):
            return 0 if n == 0 else 1 + futures.submit(chain, n - 1).result()

        print(futures.submit(chain, 100_000).result())
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("100000\n", "")


def test_a_chain_through_c_code(script: Callable[[str], object]) -> None:
    # `sum`, `sorted` and generator expressions put frames on the C stack.
    result = script(
        """
        from p2pscoop import futures

        def chain(n):
            if n == 0:
                return 0
            children = [futures.submit(chain, n - 1)]
            return 1 + sum(sorted((each.result() for each in children), key=lambda value: -value))

        print(futures.submit(chain, 20_000).result())
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("20000\n", "")


def test_a_chain_of_coroutine_tasks(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        async def chain(n):
            return 0 if n == 0 else 1 + await futures.submit(chain, n - 1)

        print(futures.submit(chain, 100_000).result())
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("100000\n", "")


def test_a_chain_of_maps(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        def chain(n):
            return 0 if n == 0 else 1 + next(futures.map(chain, [n - 1]))

        print(futures.submit(chain, 20_000).result())
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("20000\n", "")


def test_chains_on_several_nodes(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        def chain(n):
            return 0 if n == 0 else 1 + futures.submit(chain, n - 1).result()

        async def achain(n):
            return 0 if n == 0 else 1 + await futures.submit(achain, n - 1)

        print([each.result() for each in [futures.submit(chain, 5000) for _ in range(6)]])
        print([each.result() for each in [futures.submit(achain, 5000) for _ in range(6)]])
        """
    ).run(env={"P2PSCOOP_NODES": "3"})
    assert (result.stdout, result.stderr) == (f"{[5000] * 6}\n" * 2, "")


def test_the_users_own_recursion_still_fits(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        def recurse(n):
            return 0 if n == 0 else 1 + recurse(n - 1)

        def deep(level):
            inner = 0 if level == 0 else futures.submit(deep, level - 1).result()
            return inner + recurse(700)

        print(futures.submit(deep, 500).result())
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("350700\n", "")


def test_endless_recursion_is_an_error_not_a_crash(script: Callable[[str], object]) -> None:
    result = script(
        """
        from p2pscoop import futures

        def forever(n):
            return forever(n + 1)

        try:
            futures.submit(forever, 0).result()
        except RecursionError:
            print("too deep")
        """
    ).run(env={"P2PSCOOP_NODES": "1"})
    assert (result.stdout, result.stderr) == ("too deep\n", "")
