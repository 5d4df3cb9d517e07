"""Long messages are cut up and put together, whatever order their pieces come in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pscoop._core.fragments import FRAGMENT_MARK, Assembler, cut
from p2pscoop._core.limits import Limits
from p2pscoop.errors import RemoteProtocolError

SMALL = Limits(frame_max=64, message_max=2000, assembly_max=4000)


def frames_of(data: bytes, stream: int = 1, limits: Limits = SMALL) -> list[bytes]:
    return list(cut(data, stream.to_bytes(8, "big"), limits))


def message(size: int) -> bytes:
    return b"Q" + random.Random(size).randbytes(size - 1)


@given(st.integers(1, 1500), st.randoms(use_true_random=False))
def test_any_order_and_repetition(size: int, rng: random.Random) -> None:
    data = message(size)
    frames = frames_of(data)
    assert all(len(frame) <= SMALL.frame_max for frame in frames)
    shuffled = frames + [rng.choice(frames) for _ in range(3)] if len(frames) > 1 else frames
    rng.shuffle(shuffled)
    assembler = Assembler(SMALL)
    whole = [assembled for frame in shuffled if (assembled := assembler.feed(frame)) is not None]
    # Repeated pieces may make the message arrive again, as a message may anyway.
    assert whole
    assert set(whole) == {data}


def test_a_short_message_is_its_own_frame() -> None:
    data = message(64)
    assert frames_of(data) == [data]
    assert Assembler(SMALL).feed(data) == data


def test_messages_may_be_interleaved() -> None:
    first, second = message(300), message(500)
    assembler = Assembler(SMALL)
    whole = []
    pairs = zip(frames_of(first, 1), frames_of(second, 2), strict=False)
    frames = [frame for pair in pairs for frame in pair]
    frames += frames_of(second, 2)[len(frames) // 2 :]
    for frame in frames:
        assembled = assembler.feed(frame)
        if assembled is not None:
            whole.append(assembled)
    assert whole == [first, second]
    assert assembler.size == 0


def test_what_is_half_received_is_bounded() -> None:
    assembler = Assembler(SMALL)
    for stream in range(200):
        for frame in frames_of(message(1000), stream)[:-1]:
            assert assembler.feed(frame) is None
    assert assembler.size <= SMALL.assembly_max
    # The newest message is still complete.
    assert assembler.feed(frames_of(message(1000), 199)[-1]) == message(1000)


def test_beginnings_that_hold_nothing_are_bounded_too() -> None:
    assembler = Assembler(SMALL)
    for stream in range(1000):
        assert assembler.feed(head(stream.to_bytes(8, "big"), 51, 52, 51 * 39 + 1) + b"x") is None
    assert 0 < len(assembler._assemblies) * 256 <= SMALL.assembly_max
    assert assembler.size <= SMALL.assembly_max


def head(stream: bytes, index: int, count: int, size: int) -> bytes:
    numbers = index.to_bytes(4, "big") + count.to_bytes(4, "big") + size.to_bytes(8, "big")
    return bytes((FRAGMENT_MARK,)) + stream + numbers


@pytest.mark.parametrize(
    ("index", "count", "size", "piece"),
    [
        (0, 1, 0, 0),
        (0, 2**32 - 1, 2**63, 39),
        (0, 2, 2001, 39),
        (5, 2, 60, 39),
        (0, 2, 60, 10),
        (1, 2, 60, 39),
        (0, 3, 60, 39),
    ],
)
def test_impossible_fragments_are_refused(index: int, count: int, size: int, piece: int) -> None:
    assembler = Assembler(SMALL)
    with pytest.raises(RemoteProtocolError):
        assembler.feed(head(b"s" * 8, index, count, size) + bytes(piece))
    assert assembler.size == 0


def test_a_fragment_without_a_head_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="shorter than its head"):
        Assembler(SMALL).feed(bytes((FRAGMENT_MARK, 1, 2)))


def test_fragments_that_differ_about_the_size_are_refused() -> None:
    assembler = Assembler(SMALL)
    assembler.feed(frames_of(message(300), 1)[0])
    with pytest.raises(RemoteProtocolError, match="differ about its size"):
        assembler.feed(frames_of(message(500), 1)[0])
