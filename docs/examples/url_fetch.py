"""How large pages are, fetched by all nodes. Without addresses it serves, and fetches, some pages of its own.

p2pscoop run -n 4 docs/examples/url_fetch.py http://127.0.0.1:8000/ ...
"""

from __future__ import annotations

import contextlib
import http.server
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from p2pscoop import futures


def size(url: str) -> tuple[str, int | str]:
    """The address, and how many bytes are there, or why nobody knows."""
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return url, len(page.read())
    except urllib.error.URLError as error:
        return url, str(error.reason)


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"x" * int(self.path.strip("/"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def own_pages() -> Iterator[list[str]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [f"http://127.0.0.1:{server.server_port}/{length}" for length in range(0, 50_000, 5_000)]
        server.shutdown()


def main() -> None:
    with contextlib.nullcontext(sys.argv[1:]) if sys.argv[1:] else own_pages() as urls:
        for url, bytes_or_reason in futures.map(size, urls):
            print(url, bytes_or_reason)
        total = sum(length for _, length in futures.map_as_completed(size, urls) if isinstance(length, int))
        print("altogether", total)


if __name__ == "__main__":
    main()
