"""Downloads, from a hub of our own on this machine: whole, interrupted, wrong."""

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flow_ttrl.rewards import CATALOGUE, catalogue, download
from flow_ttrl.rewards.catalogue import Entry
from flow_ttrl.rewards.files import File, Folder

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
        assert file.size > 1000
        assert file.licence
        assert not file.path.startswith("/")
        if isinstance(file, Folder):
            assert len(file.revision) == 40
            assert file.sha256 and all(len(digest) == 64 for _, digest in file.sha256)
            continue
        assert len(file.sha256) == 64
        assert file.repo or file.source.startswith("https://")


PARTS = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": CONTENT[: 1 << 20],
    "model-2.safetensors": CONTENT[1 << 20 : 3 << 20],
    "README.md": b"nothing to load",
    "onnx/model.safetensors": b"another format",
}
REPOSITORY = Folder(
    path="tiny-vlm", also=("other-vlm",), repo="someone/tiny-vlm", size=3 << 20, licence="MIT"
)


class RepositoryHub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for a repository; ``spoilt`` comes other than listed."""

    asked, spoilt = [], ""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith(f"/api/models/{REPOSITORY.repo}"):
            return self.answer(json.dumps(self.listing()).encode())
        name = self.path.removeprefix(f"/{REPOSITORY.repo}/resolve/{'b' * 40}/")
        if name not in PARTS:
            return self.send_error(404)
        if self.command == "GET":
            type(self).asked.append(name)
        return self.answer(PARTS[name][::-1] if name == self.spoilt else PARTS[name])

    def listing(self) -> dict:
        def told(name: str, content: bytes) -> dict:
            found = {"rfilename": name, "size": len(content), "blobId": "c" * 40}
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 134}
            return found | ({"lfs": lfs} if name.endswith(".safetensors") else {})

        parts = [told(*part) for part in PARTS.items()]
        return {"id": REPOSITORY.repo, "sha": "b" * 40, "siblings": parts}

    def answer(self, body: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def repository(monkeypatch):
    """The hub's address; the repository is the reward "tiny"."""
    entry = Entry("tiny", "a folder", lambda paths, options: None, (REPOSITORY,))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    monkeypatch.setattr(RepositoryHub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), RepositoryHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOADED = {name for name in PARTS if "/" not in name and not name.endswith(".md")}


def test_a_repository_comes_whole_and_no_more_than_the_model(repository, tmp_path):
    assert CATALOGUE["tiny"].missing([tmp_path]) == [REPOSITORY]
    assert download.download("tiny", tmp_path, repository) == [tmp_path / "tiny-vlm"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "tiny-vlm").iterdir()}
    assert found == {name: PARTS[name] for name in LOADED}
    assert CATALOGUE["tiny"].lacks([tmp_path]) == []
    assert download.download("tiny", tmp_path, repository) == []
    assert set(RepositoryHub.asked) == LOADED


def test_what_came_of_a_repository_is_not_fetched_again(repository, tmp_path):
    (tmp_path / "tiny-vlm").mkdir()
    for name in ("config.json", "model.safetensors.index.json", "model-1.safetensors"):
        (tmp_path / "tiny-vlm" / name).write_bytes(PARTS[name])
    assert CATALOGUE["tiny"].missing([tmp_path]) == [REPOSITORY]
    download.download("tiny", tmp_path, repository)
    assert RepositoryHub.asked == ["model-2.safetensors"]


@pytest.mark.parametrize("damaged", [b"", b'{"weight_map": ', b"[]"])
def test_an_index_that_cannot_be_read_is_no_model(repository, tmp_path, damaged):
    download.download("tiny", tmp_path, repository)
    (tmp_path / "tiny-vlm" / "model.safetensors.index.json").write_bytes(damaged)
    assert CATALOGUE["tiny"].missing([tmp_path]) == [REPOSITORY]


def test_a_large_file_is_checked_by_the_hubs_checksum(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(RepositoryHub, "spoilt", "model-2.safetensors")
    with pytest.raises(ValueError, match="expected model-2.safetensors with SHA-256"):
        download.download("tiny", tmp_path, repository)
    assert not (tmp_path / "tiny-vlm" / "model-2.safetensors").exists()
    assert CATALOGUE["tiny"].lacks([tmp_path])


def test_a_hub_that_lists_other_weights_is_not_fetched_from(repository, tmp_path, monkeypatch):
    first, second = "model-1.safetensors", "model-2.safetensors"
    own = ((first, hashlib.sha256(PARTS[first]).hexdigest()), (second, "0" * 64))
    entry = Entry("tiny", "", lambda paths, options: None, (replace(REPOSITORY, sha256=own),))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    with pytest.raises(ValueError, match=f"expected {second} of .* with SHA-256 {'0' * 64}"):
        download.download("tiny", tmp_path, repository)
    assert RepositoryHub.asked == [] and list(tmp_path.iterdir()) == []
    kept = replace(REPOSITORY, sha256=own[:1])
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", replace(entry, files=(kept,)))
    download.download("tiny", tmp_path, repository)
    assert set(RepositoryHub.asked) == LOADED


def test_another_model_serves_in_its_place(tmp_path):
    other = tmp_path / "other-vlm"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert REPOSITORY.find([tmp_path]) is None
    (other / "model.safetensors").write_bytes(b"")
    assert REPOSITORY.find([tmp_path]) == other
