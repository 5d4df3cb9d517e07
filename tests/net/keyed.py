"""A peer that has the key, speaks TLS and NNG's framing by itself, and keeps to nothing else."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from typing import Any

import pynng

from p2pscoop._security import ClusterKey
from p2pscoop._transport import tls_config

_PUSH = b"\x00SP\x00\x00\x50\x00\x00"
"""What a `Push0` socket says first."""
_PULL = b"\x00SP\x00\x00\x51\x00\x00"
_TIMEOUT_MS = 30_000


class KeyedPeer:
    """One connection.

    The standard library of Python 3.11 has no pre-shared keys, so the streams below NNG's sockets are used.

    Args:
        address: of a node's inbox, by TLS.
        keys: the first of which is proved.
    """

    def __init__(self, address: str, keys: Sequence[ClusterKey]) -> None:
        self._config = tls_config(keys, listens=False)
        self._dialer = pynng.ffi.new("nng_stream_dialer **")
        self._aio = pynng.ffi.new("nng_aio **")
        pynng.check_err(pynng.lib.nng_stream_dialer_alloc(self._dialer, address.encode()))
        pynng.check_err(
            pynng.lib.nng_stream_dialer_set_ptr(self._dialer[0], b"tls-config", self._config._tls_config)
        )
        pynng.check_err(pynng.lib.nng_aio_alloc(self._aio, pynng.ffi.NULL, pynng.ffi.NULL))
        pynng.lib.nng_aio_set_timeout(self._aio[0], _TIMEOUT_MS)
        pynng.lib.nng_stream_dialer_dial(self._dialer[0], self._aio[0])
        self._wait()
        self._stream: Any = pynng.ffi.cast("nng_stream *", pynng.lib.nng_aio_get_output(self._aio[0], 0))

    def _wait(self) -> int:
        pynng.lib.nng_aio_wait(self._aio[0])
        pynng.check_err(pynng.lib.nng_aio_result(self._aio[0]))
        return int(pynng.lib.nng_aio_count(self._aio[0]))

    def _transfer(self, operation: Any, buffer: Any, size: int) -> int:
        iov = pynng.ffi.new("nng_iov *")
        iov.iov_buf, iov.iov_len = buffer, size
        pynng.check_err(pynng.lib.nng_aio_set_iov(self._aio[0], 1, iov))
        operation(self._stream, self._aio[0])
        return self._wait()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        while data:
            buffer = pynng.ffi.new("uint8_t[]", data)
            data = data[self._transfer(pynng.lib.nng_stream_send, buffer, len(data)) :]

    def receive(self, size: int) -> bytes:
        """At most so many bytes.

        Raises:
            NNGException: the other side has closed the connection.
        """
        buffer = pynng.ffi.new("uint8_t[]", size)
        count = self._transfer(pynng.lib.nng_stream_recv, buffer, size)
        return bytes(pynng.ffi.buffer(buffer, count))

    def introduce(self) -> None:
        """Become a pipe of the inbox."""
        self.send(_PUSH)
        answer = b""
        while len(answer) < len(_PULL):
            answer += self.receive(len(_PULL) - len(answer))
        assert answer == _PULL

    def frame(self, data: bytes, size: int | None = None) -> None:
        """Send a frame; or one that says that it has another size."""
        self.send(struct.pack(">Q", len(data) if size is None else size) + data)

    def is_cut_off(self) -> bool:
        """Wait until the other side closes the connection."""
        try:
            self.receive(1)
        except pynng.NNGException as error:
            return not isinstance(error, pynng.Timeout)
        return False

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            pynng.lib.nng_stream_close(self._stream)
            pynng.lib.nng_stream_free(self._stream)
        pynng.lib.nng_stream_dialer_close(self._dialer[0])
        pynng.lib.nng_stream_dialer_free(self._dialer[0])
        pynng.lib.nng_aio_free(self._aio[0])

    def __enter__(self) -> KeyedPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
