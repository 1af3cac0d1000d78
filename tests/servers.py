"""Servers on loopback: two of S3, a proxy that loses, repeats and damages, and one of files that stops answering."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY, SECRET = "stillhouse-tests", "planted-secret-4f1b9"

# Where nobody listens.
NOBODY = "http://127.0.0.1:9"

Fault = Callable[[str, str], str | None]
FAULTS = ("refused", "slow", "cut", "repeated", "lost")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, outside the range that Ray gives to its workers."""
    found: list[int] = []
    sockets = []
    while len(found) < count:
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        sockets.append(one)
        port = one.getsockname()[1]
        # SeaweedFS adds 10,000 to a port where none is named for its own traffic.
        if not 10002 <= port <= 19999 and port < 55000:
            found.append(port)
    for one in sockets:
        one.close()
    return found


def _program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


@contextmanager
def _server(command: list[str], port: int, log: Path) -> Iterator[str]:
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                    connection.request("GET", "/")
                    connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """SeaweedFS's S3 server, which keeps `If-None-Match`; gives its endpoint."""
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(8)
    names = ("s3", "master", "volume", "filer", "s3", "master", "volume", "filer")
    listen = [
        f"-{name}.port{'.grpc' if index >= 4 else ''}={port}"
        for index, (name, port) in enumerate(zip(names, ports, strict=True))
    ]
    data = folder / "data"
    data.mkdir()
    command = [_program("weed"), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    # Its table catalogs would listen on fixed ports.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=40"]
    with _server([*command, *listen], ports[0], folder / "log") as endpoint:
        yield endpoint


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """rclone's S3 server, which takes `If-None-Match` and ignores it; gives its endpoint."""
    [port] = free_ports(1)
    data = folder / "data"
    data.mkdir()
    command = [_program("rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}"]
    with _server([*command, "--config=/dev/null", str(data)], port, folder / "log") as endpoint:
        yield endpoint


def environment(endpoint: str) -> dict[str, str]:
    """What leads any S3 client to a server here."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def lead_to(endpoint: str, monkeypatch: Any, **replaced: str) -> None:
    """Set this process's environment to a server; clients that were made for another one are not used for it."""
    from s3fs import S3FileSystem

    wanted = {**environment(endpoint), **replaced}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    if not _clients or _clients[-1][0] != wanted:
        # Held on to, since a client that is collected leaves its connections open.
        _clients.append((wanted, dict(S3FileSystem._cache)))
        S3FileSystem.clear_instance_cache()


_clients: list[tuple[dict[str, str], dict[Any, Any]]] = []


def make_bucket(endpoint: str, name: str) -> None:
    from s3fs import S3FileSystem

    S3FileSystem(key=KEY, secret=SECRET, endpoint_url=endpoint).mkdir(name)


class Proxy:
    """An HTTP proxy before one server. `fault(method, path)` names what happens to a request, None for nothing.

    `upstream` and `fault` may be set at any time; they hold from the next request on.

    refused: 503, the server is not asked. slow: a second late. cut: half of the answer's body.
    repeated: the server is asked twice. lost: the server is asked, the answer never comes.
    """

    def __init__(self, upstream: str) -> None:
        self.fault: Fault = lambda method, path: None
        self.upstream = upstream
        self.seen: Counter[str] = Counter()
        self.slow_s = 1.0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path)
                if fault is not None:
                    proxy.seen[fault] += 1
                if fault == "refused":
                    self.answer(503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>not now</Message></Error>")
                    return
                if fault == "slow":
                    time.sleep(proxy.slow_s)
                answer = self.ask(body)
                if fault == "repeated":
                    answer = self.ask(body)
                if fault == "lost":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(*answer, cut=fault == "cut")

            def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                # A connection of its own, closed also where the server goes away in the middle.
                server = proxy.upstream.removeprefix("http://")
                with closing(http.client.HTTPConnection(server, timeout=60)) as connection:
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() not in ("connection", "expect"):
                            connection.putheader(name, value)
                    connection.endheaders(body)
                    response = connection.getresponse()
                    data = response.read()
                    headers = {k: v for k, v in response.headers.items() if k.lower() not in _HOP}
                    if self.command == "HEAD":
                        headers["Content-Length"] = response.headers.get("Content-Length", "0")
                    return response.status, headers, data

            def answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if cut:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that went away is what is asked for here

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """No fault, nothing seen, and no server behind it until `upstream` is set."""
        self.fault, self.upstream, self.slow_s = (lambda method, path: None), NOBODY, 1.0
        self.seen.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class FileServer:
    """An HTTP server of a few files, with ranges or without, that fails once so many requests were answered.

    From then on: cut, half of a body and then the connection is closed; lost, no answer; refused, status 503.
    """

    def __init__(self, files: dict[str, bytes], ranges: bool = True) -> None:
        self.asked, self.answers, self.fault = 0, 0, ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked += 1
                fault = server.fault if server.asked > server.answers else ""
                self.close_connection = bool(fault)
                if fault == "lost":
                    return
                data = files.get(self.path)
                if fault == "refused" or data is None:
                    self.send_response(503 if fault else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "") if ranges else "")
                start, stop = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(data))
                body = data[start:stop]
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", '"1"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[: len(body) // 2] if fault else body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that has what it needs closes the connection in the middle of a body

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def fail_after(self, answers: int, fault: str) -> None:
        self.asked, self.answers, self.fault = 0, answers, fault

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_HOP = ("connection", "content-length", "transfer-encoding", "keep-alive", "date")
