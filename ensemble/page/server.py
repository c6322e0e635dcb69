"""Serve the folder of a page on this machine only, with Python's own server."""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ensemble.errors import FileError, OptionError
from ensemble.page.site import FACTS, INDEX

_HOST = "127.0.0.1"


class _QuietHandler(SimpleHTTPRequestHandler):
    """Sends files with the types that browsers require, whatever the machine's own tables of types say."""

    extensions_map = {  # noqa: RUF012 - the attribute of the base class
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".gz": "application/gzip",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".txt": "text/plain; charset=utf-8",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Print nothing."""

    def end_headers(self) -> None:
        """Have browsers ask again for files that may have been written again."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def open_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server for the folder of a page on 127.0.0.1; 0 stands for any free port.

    It answers once ``serve_forever`` is called; its ``server_port`` is the port.

    Raises:
        FileError: E707 when the folder holds no page.
        OptionError: E204 when the port is in use or not allowed.
    """
    if not all((folder / name).is_file() for name in (INDEX, FACTS)):
        raise FileError("E707", f"{folder} holds no page that ens page wrote", path=folder)
    try:
        return ThreadingHTTPServer((_HOST, port), functools.partial(_QuietHandler, directory=str(folder)))
    except OSError as err:
        raise _port_error(port, err) from err


def require_port(port: int) -> None:
    """Check that a port can be used, before any work is done.

    Raises:
        OptionError: E204 when it is in use or not allowed.
    """
    try:
        ThreadingHTTPServer((_HOST, port), _QuietHandler).server_close()
    except OSError as err:
        raise _port_error(port, err) from err


def _port_error(port: int, err: OSError) -> OptionError:
    return OptionError("E204", f"--port {port} cannot be used: {err}", hint="choose another port")


def address_of(server: ThreadingHTTPServer) -> str:
    """Return the address of a server's page."""
    return f"http://{_HOST}:{server.server_port}/"
