"""Downloads against a real HTTP server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vitesse.errors import ModelError, StorageError
from vitesse.sources.download import Remote, cache_folder, download

BODY = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY at /weights.npz, with ranges; sends only `limit` bytes of it while that is set."""

    limit: int | None = None
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range", "all"))
        if not self.path.endswith("weights.npz"):
            self.send_error(404, "Not Found")
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(BODY):
            self.send_error(416, "Range Not Satisfiable")
            return
        body = BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def remote(server: Server, sha256: str = "", name: str = "weights.npz") -> Remote:
    return Remote(f"http://127.0.0.1:{server.server_port}/some/{name}", sha256)


def test_a_file_is_downloaded_once_and_checked_by_the_published_digits(
    server: Server, tmp_path: Path
) -> None:
    path = download(remote(server, DIGEST[:8]), tmp_path)
    assert path.read_bytes() == BODY
    assert download(remote(server, DIGEST), tmp_path) == path
    assert server.asked == ["all"]


def test_another_hash_is_refused_and_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"sha256 {DIGEST[:16]}…\n  expected: one that begins with 0123abcd"):
        download(remote(server, "0123abcd"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_published_hash_that_of_the_first_download_holds(server: Server, tmp_path: Path) -> None:
    path = download(remote(server), tmp_path)
    assert (tmp_path / "weights.npz.sha256").read_text().strip() == DIGEST
    path.write_bytes(b"replaced")
    with pytest.raises(ModelError, match="in the cache has sha256"):
        download(remote(server), tmp_path)
    assert path.read_bytes() == b"replaced"


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.limit = 1_000_000
    with pytest.raises(
        ModelError, match=r"ended after 1000000 of 5120000 bytes[\s\S]*repeat the command to go on"
    ):
        download(remote(server, DIGEST), tmp_path)
    server.limit = None
    assert download(remote(server, DIGEST), tmp_path).read_bytes() == BODY
    assert server.asked == ["all", "bytes=1000000-"]


def test_a_part_that_is_already_whole_is_taken_by_its_hash(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.npz.part").write_bytes(BODY)
    assert download(remote(server, DIGEST), tmp_path).read_bytes() == BODY


def test_an_address_that_answers_with_an_error_says_so_and_how_to_go_on(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"HTTP 404 Not Found[\s\S]*give --weights gone.npz"):
        download(remote(server, name="gone.npz"), tmp_path)


def test_no_network_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot download http://127.0.0.1:9/x.npz[\s\S]*no network"):
        download(Remote("http://127.0.0.1:9/x.npz"), tmp_path)


def test_a_cache_that_cannot_be_written_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        download(remote(server), tmp_path / "file")


def test_the_cache_lies_where_the_desktop_standard_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vitesse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "vitesse"


def test_a_url_cannot_name_a_file_outside_the_cache() -> None:
    assert Remote("https://host/a/..%2F..%2Fevil.npz").file_name == "evil.npz"
