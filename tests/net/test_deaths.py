"""What is told of nodes that died with a task, and how long an error waits for it."""

from __future__ import annotations

from p2pscoop._core.values import PeerInfo
from p2pscoop._deaths import PATIENCE_S, Death, Deaths, notice


def info(name: str, pid: int) -> PeerInfo:
    return PeerInfo(name.encode().ljust(8), name, (), "", False, True, "here", pid, "1")


def test_an_error_waits_for_word_of_all_deaths() -> None:
    deaths = Deaths()
    deaths.poisoned(0.0, "task", "f", [info("n1", 1), info("n2", 2)])
    assert deaths.hear(notice(Death("here", 1, "was killed by SIGSEGV")))
    assert deaths.hear(notice(Death("elsewhere", 2, "another process of that number")))
    assert deaths.explained(0.0) == []
    assert deaths.hear(notice(Death("here", 2, "ended with status 9")))
    [(task, error)] = deaths.explained(0.0)
    assert task == "task"
    assert error.nodes == ("n1 on here", "n2 on here")
    assert error.deaths == (
        "n1 on here (pid 1) was killed by SIGSEGV",
        "n2 on here (pid 2) ended with status 9",
    )
    assert "2 nodes died while they had f: n1 on here, n2 on here\n- n1 on here (pid 1) was" in str(error)
    assert deaths.explained(PATIENCE_S) == []


def test_word_that_does_not_come_is_not_waited_for_long() -> None:
    deaths = Deaths()
    deaths.poisoned(0.0, "task", "f", [info("n1", 1), None])
    assert deaths.explained(PATIENCE_S / 2) == []
    [(_, error)] = deaths.explained(PATIENCE_S)
    assert "how is not known" in error.deaths[0]
    assert error.nodes == ("n1 on here", "?")


def test_other_questions_are_not_its() -> None:
    deaths = Deaths()
    for question in (b"", b"\xc1", notice(Death("here", 1, ""))[:-1], b"\x92\xa4have\xa1x", b"\x92\xa4died\x01"):
        assert not deaths.hear(question)
