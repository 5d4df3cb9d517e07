"""Coverage-guided fuzzing of what reads the bytes of peers: `python -m benchmarks.fuzz --seconds 300`.

Needs atheris (`pip install atheris`), which drives libFuzzer. It starts from messages of every kind, and changes
bytes as libFuzzer does, or a value within the header, as something that knows msgpack but not us would. Whatever
comes in, `RemoteProtocolError` is all that may come out, memory stays within a constant times the input, and what
is read as a message can be written and read again. Anything else is printed, kept in a file, and ends the run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import atheris
import msgpack

# Before anything else imports them: only then are they instrumented.
with atheris.instrument_imports(include=["p2pscoop._core", "msgpack.fallback"]):
    from p2pscoop._core.codec import Envelope, decode, encode
    from p2pscoop._core.fragments import Assembler
    from p2pscoop._core.limits import Limits
    from p2pscoop._core.messages import Join
    from p2pscoop.errors import RemoteProtocolError

from benchmarks.messages import ODD_VALUES, samples

_LIMITS = Limits()
_SMALL = Limits(frame_max=200)

_MEMORY_PER_BYTE = 256
_MEMORY_AT_LEAST = 256 * 1024
_INPUT_MAX = 4096


def check(data: bytes) -> None:
    """Read bytes as a node does.

    Raises:
        AssertionError: they cost more memory than they may, or do not read the same twice.
    """
    bound = _MEMORY_AT_LEAST + _MEMORY_PER_BYTE * len(data)
    envelope, taken = _read(data)
    if taken > bound:
        # Now and then the interpreter makes room for itself, for the names that it has seen. Not twice.
        envelope, taken = _read(data)
    assert taken <= bound, f"{len(data)} bytes took {taken} of memory"
    if envelope is not None and not isinstance(envelope.message, Join):  # Of those, a part may be left out.
        assert decode(encode(envelope, _LIMITS), _LIMITS) == envelope


def _read(data: bytes) -> tuple[Envelope | None, int]:
    """The message, if it is one, and the bytes of memory that it took at most to find out."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    envelope = None
    try:
        message = Assembler(_SMALL).feed(data)
        if message is not None:
            envelope = decode(message, _LIMITS)
    except RemoteProtocolError:
        pass
    _, peak = tracemalloc.get_traced_memory()
    return envelope, peak - before


def _changed(data: bytes, rng: random.Random) -> bytes:
    """A message with one value of its header replaced by something else, or the bytes as they are."""
    size = int.from_bytes(data[1:5], "big")
    try:
        header = msgpack.unpackb(data[5 : 5 + size], strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return data
    place = header
    while isinstance(place, list) and place:
        index = rng.randrange(len(place))
        if not isinstance(place[index], list) or rng.random() < 0.2:
            place[index] = rng.choice((*ODD_VALUES, place[rng.randrange(len(place))]))
            break
        place = place[index]
    packed: bytes = msgpack.packb(header)
    return data[:1] + len(packed).to_bytes(4, "big") + packed + data[5 + size :]


def fuzz(corpus: str, seconds: int, seed: int) -> None:
    """Begin with the messages in a directory. libFuzzer ends the process."""

    def mutate(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return _changed(data, rng)[:size_max]
        mutated: bytes = atheris.Mutate(data, size_max)
        return mutated

    tracemalloc.start()
    flags = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={_INPUT_MAX}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, corpus], check, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Make the first messages, and fuzz in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long  [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the changes  [default: %(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as corpus:
        for number, sample in enumerate(samples()):
            Path(corpus, str(number)).write_bytes(sample)
        program = f"from benchmarks.fuzz import fuzz; fuzz({corpus!r}, {options.seconds}, {options.seed})"
        sys.exit(subprocess.run([sys.executable, "-c", program]).returncode)


if __name__ == "__main__":
    main()
