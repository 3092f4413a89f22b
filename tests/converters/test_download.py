"""Downloads the release from a local server that can also fail."""

import contextlib
import gc
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import jaxtransfer as jt
from jaxtransfer.converters import download as release
from jaxtransfer.converters.download import download

# pooch leaves the connection of a failed request to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CONTENT = {stem: stem.encode() * 50_000 for stem in ("denoising_encoder", "denoising_decoder", "jigsaw_encoder")}
FILES = [f"{stem}-{hashlib.sha256(content).hexdigest()}.pth" for stem, content in CONTENT.items()]


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `trouble` is the failure for the file whose stem is `victim`."""

    daemon_threads = True
    trouble = victim = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/weights"
        self.requested: list[str] = []
        self.stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        stem = self.path.removeprefix("/weights/").partition("-")[0]
        self.server.requested.append(stem)
        trouble = self.server.trouble if stem == self.server.victim else ""
        content = CONTENT[stem]
        if trouble == "busy":
            self.server.trouble = ""
            trouble = "503"
        if trouble.startswith(("http", "/")):
            self.send_response(302)
            self.send_header("Location", trouble.replace("FILE", self.path))
            self.end_headers()
            return
        if trouble.isdigit():
            self.send_error(int(trouble))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if trouble == "truncate":
            content = content[: len(content) // 2]
        elif trouble == "corrupt":
            content = b"!" + content[1:]
        if trouble == "slow":
            with contextlib.suppress(OSError):
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    self.server.stopping.wait(0.02)
            return
        if trouble == "silent":
            self.server.stopping.wait(5)
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()
    gc.collect()


def test_fetches_everything_and_reports_bytes(server: Server, tmp_path: Path, capfd: Any) -> None:
    seen = []
    paths = download(tmp_path / "new", base_url=server.url, files=FILES, on_progress=lambda *what: seen.append(what))
    assert paths == [tmp_path / "new" / name for name in FILES]
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)
    for stem, content in CONTENT.items():
        done = [done for done, total, name in seen if name == stem and total == len(content)]
        assert done[-1] == len(content)
        assert len(done) > 2
    assert capfd.readouterr() == ("", "")


def test_only_some_tasks_by_either_name(server: Server, tmp_path: Path) -> None:
    download(tmp_path, ["jigsaw"], base_url=server.url + "/", files=FILES)
    assert server.requested == ["jigsaw_encoder"]
    for name in ("denoise", "denoising"):
        assert len(download(tmp_path, [name], base_url=server.url, files=FILES)) == 2
    assert server.requested == ["jigsaw_encoder", "denoising_encoder", "denoising_decoder"]


def test_complete_files_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_bytes(CONTENT["denoising_encoder"])
    (tmp_path / FILES[1]).write_bytes(b"damaged")
    download(tmp_path, base_url=server.url, files=FILES)
    assert server.requested == ["denoising_decoder", "jigsaw_encoder"]
    assert (tmp_path / FILES[1]).read_bytes() == CONTENT["denoising_decoder"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("404", "404 Client Error"),
        ("500", "500 Server Error"),
        ("truncate", "(?i)truncated|incomplete"),
        ("corrupt", "does not have the SHA-256"),
    ],
)
def test_failures_of_the_server(server: Server, tmp_path: Path, trouble: str, reason: str) -> None:
    server.trouble, server.victim = trouble, "denoising_decoder"
    with pytest.raises(jt.JaxTransferError, match=reason) as raised:
        download(tmp_path, base_url=server.url, files=FILES)
    assert str(tmp_path / FILES[1]) in str(raised.value)
    assert f"{server.url}/{FILES[1]}" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [FILES[0]]
    server.trouble = ""
    assert len(download(tmp_path, base_url=server.url, files=FILES)) == 3
    assert server.requested.count("denoising_encoder") == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_PAUSES", (0.01, 0.01))
    server.trouble, server.victim = "busy", "denoising_decoder"
    assert len(download(tmp_path, base_url=server.url, files=FILES)) == 3
    assert server.requested.count("denoising_decoder") == 2
    server.trouble, server.victim = "503", "jigsaw_encoder"
    (tmp_path / FILES[2]).unlink()
    with pytest.raises(jt.JaxTransferError, match="503 Server Error"):
        download(tmp_path, base_url=server.url, files=FILES)
    assert server.requested.count("jigsaw_encoder") == 1 + 3


def test_a_slow_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_LEAST_SECONDS", 0.2)
    monkeypatch.setattr(release, "_LEAST_BYTES_PER_SECOND", 10**9)
    server.trouble, server.victim = "slow", "denoising_encoder"
    with pytest.raises(jt.JaxTransferError, match=r"the server sends too slowly: \d+ bytes of 850,000 so far"):
        download(tmp_path, base_url=server.url, files=FILES)
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(release, "_SILENT_SECONDS", 0.1)
    server.trouble, server.victim = "silent", "denoising_encoder"
    seen = []
    with pytest.raises(jt.JaxTransferError, match="timed out"):
        download(tmp_path, base_url=server.url, files=FILES, on_progress=lambda *what: seen.append(what[2]))
    assert "denoising_encoder (nothing came for 0 s)" in seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("http://localhost:9/FILE", "redirects to http://localhost:9/.* another host without https"),
        ("/weights/denoising_encoder", "redirects more than 5 times"),
    ],
)
def test_redirects_that_are_not_followed(server: Server, tmp_path: Path, place: str, reason: str) -> None:
    server.trouble, server.victim = place, "denoising_encoder"
    with pytest.raises(jt.JaxTransferError, match=reason):
        download(tmp_path, base_url=server.url, files=FILES)
    assert not list(tmp_path.iterdir())


def test_a_redirect_within_the_host_is_followed(server: Server) -> None:
    server.trouble, server.victim = "/weights/jigsaw_encoder", "denoising_encoder"
    with release._response(f"{server.url}/denoising_encoder") as response:
        assert response.raw.read() == CONTENT["jigsaw_encoder"]


def test_no_server_answers(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(jt.JaxTransferError, match="refused") as raised:
        download(tmp_path, base_url=url, files=FILES)
    assert FILES[0] in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(jt.JaxTransferError, match="no task 'juggling' in Taskonomy; there are: autoencoder,"):
        download(tmp_path / "new", ["juggling"])
    with pytest.raises(jt.JaxTransferError, match="could not be fetched from nowhere/"):
        download(tmp_path / "new", base_url="nowhere", files=FILES)
    (tmp_path / "file").write_text("")
    with pytest.raises(jt.JaxTransferError, match="could not be fetched"):
        download(tmp_path / "file", base_url="http://127.0.0.1:9", files=FILES)
    assert (tmp_path / "file").read_text() == ""


def test_release_table() -> None:
    network = pytest.importorskip("visualpriors.taskonomy_network")
    assert sorted(release.RELEASE_FILES) == sorted(network.TASKONOMY_PRETRAINED_WEIGHT_FILES)
    assert network.TASKONOMY_PRETRAINED_WEIGHT_URL_TEMPLATE == release.BASE_URL + "{filename}"
    parts = [release.parse_name(name) for name in release.RELEASE_FILES]
    assert len({part.task for part in parts}) == 25
    assert sum(part.part == "decoder" for part in parts) == 17
