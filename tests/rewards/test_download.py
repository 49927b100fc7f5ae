"""Downloads, from a hub of our own on this machine: whole, interrupted, wrong."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flow_ttrl.rewards import CATALOGUE, catalogue, download
from flow_ttrl.rewards.catalogue import Entry
from flow_ttrl.rewards.files import File

CONTENT = bytes(range(256)) * (96 << 10)  # 24 MB: the hub's library keeps pieces of 10
KEPT = 10 << 20
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = File(
    path="tiny-model/model.safetensors",
    repo="someone/tiny-model",
    revision="a" * 40,
    source="model.safetensors",
    size=len(CONTENT),
    sha256=DIGEST,
    licence="MIT",
)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for one file."""

    content, asked, cut_at = CONTENT, [], None

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        if self.path != f"/{FILE.repo}/resolve/{FILE.revision}/{FILE.source}":
            self.send_error(404)
            return
        span = self.headers.get("Range")
        start = int(span.split("=")[1].split("-")[0]) if span else 0
        if body:
            type(self).asked.append(start)
        rest = self.content[start:]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("X-Linked-ETag", f'"{DIGEST}"')
        self.send_header("X-Linked-Size", str(len(self.content)))
        self.send_header("X-Repo-Commit", FILE.revision)
        self.send_header("Accept-Ranges", "bytes")
        if span:
            whole = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        if body:
            self.wfile.write(self.content[start : self.cut_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def named(monkeypatch):
    """The file as a reward of the catalogue, "tiny"."""
    entry = Entry("tiny", "a file", lambda paths, options: None, (FILE,))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)


def test_a_file_comes_whole_to_its_place_and_nothing_is_left_over(hub, named, tmp_path):
    assert download.download("tiny", tmp_path, hub) == [tmp_path / FILE.path]
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / FILE.path]
    assert CATALOGUE["tiny"].lacks([tmp_path]) == []
    assert download.download("tiny", tmp_path, hub) == []
    assert len(Hub.asked) == 1


def test_an_interrupted_download_goes_on(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "cut_at", len(CONTENT) // 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match="expected model.safetensors from .*run it again"):
        download.fetch(FILE, tmp_path, hub)
    assert not (tmp_path / FILE.path).exists()
    assert (tmp_path / f"{FILE.path}.part").read_bytes() == CONTENT[:KEPT]
    monkeypatch.setattr(Hub, "cut_at", None)
    Hub.asked.clear()
    download.fetch(FILE, tmp_path, hub)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert Hub.asked == [KEPT]


def test_another_file_under_the_name_is_thrown_away(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "content", CONTENT[::-1])
    with pytest.raises(ValueError, match=f"expected .*SHA-256 {DIGEST}, got .*try again"):
        download.fetch(FILE, tmp_path, hub)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_of_another_size_is_not_overwritten(hub, named, tmp_path):
    mine = tmp_path / FILE.path
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="expected the official file .*has 4 bytes .*move it away"):
        download.download("tiny", tmp_path, hub)
    assert mine.read_bytes() == b"mine"


def test_no_room_is_found_out_first(hub, tmp_path):
    with pytest.raises(OSError, match="expected .*MB of space in .*got .*make room"):
        download.fetch(replace(FILE, size=1 << 60), tmp_path, hub)
    assert not Hub.asked


def test_a_file_that_the_hub_does_not_have(hub, tmp_path):
    with pytest.raises(OSError, match="expected other.safetensors from .*got"):
        download.fetch(replace(FILE, source="other.safetensors"), tmp_path, hub)


def test_an_address_of_its_own(hub, tmp_path):
    source = f"{hub}/{FILE.repo}/resolve/{FILE.revision}/{FILE.source}"
    file = replace(FILE, repo="", source=source)
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT


def test_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="expected a reward of the catalogue"):
        download.download("hsp", tmp_path)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogues_files_are_fully_described(name):
    for file in CATALOGUE[name].files:
        assert len(file.sha256) == 64
        assert file.size > 1000
        assert file.licence
        assert file.repo or file.source.startswith("https://")
        assert not file.path.startswith("/")
