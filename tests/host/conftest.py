"""A real ComfyUI server, with the pack linked in, for the whole session.

``COMFYUI_PATH`` names the checkout; its own Python is ``COMFYUI_PYTHON`` or its ``.venv``'s. The
pack's requirements go into an environment laid over that one, which stays as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS, RUN_SECONDS = 180, 300
TEXT_EVENT = (3).to_bytes(4, "big")
"""Of the host's binary messages: a text under a node, its id before it."""
FOLDER = "comfyui-flow-ttrl"
"""What README's clone names the pack's folder."""


def pytest_collection_modifyitems(config, items):
    if "COMFYUI_PATH" in os.environ:
        return
    here = Path(__file__).parent
    reason = "NO HOST TESTS: set COMFYUI_PATH to a ComfyUI checkout to run them"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def host_python(home: Path) -> str:
    for name in ("bin/python", "Scripts/python.exe"):
        if (home / ".venv" / name).exists():
            return str(home / ".venv" / name)
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def home() -> Path:
    return Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()


class Environment:
    """An environment over another one: what it is asked to install goes into it alone.

    pip sees the packages below as installed. One that it would replace it puts on top, where
    ``freeze`` shows it.
    """

    def __init__(self, below: str, folder: Path):
        self.python = str(folder / "bin" / "python")
        run = subprocess.run
        run([below, "-m", "venv", "--without-pip", str(folder)], check=True)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        places = [
            run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
            for python in (below, self.python)
        ]
        (Path(places[1]) / "below.pth").write_text(f"{places[0]}\n")

    def install(self, *what: str) -> None:
        """pip install."""
        command = [self.python, "-m", "pip", "install", "--quiet", *what]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        assert done.returncode == 0, done.stderr[-4000:]

    def freeze(self) -> dict[str, str]:
        """Packages and their versions, as whoever imports them gets them."""
        code = (
            "import importlib.metadata as m, json; "
            "print(json.dumps({d.name.lower(): d.version for d in reversed(list("
            "m.distributions()))}))"
        )
        return json.loads(self.run(code))

    def run(self, code: str) -> str:
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)  # noqa: S603
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout.strip()


@pytest.fixture(scope="session")
def python(home, tmp_path_factory) -> str:
    """The host's Python with the pack's requirements installed."""
    environment = Environment(host_python(home), tmp_path_factory.mktemp("environment"))
    environment.install("-r", str(ROOT / "requirements.txt"))
    return environment.python


@pytest.fixture(scope="session")
def in_host(home, python):
    """Runs ``scripts/<name>`` with the host's Python; its last line is a JSON object."""

    def run(script: str, *args: str) -> dict:
        path = Path(__file__).parent / "scripts" / script
        done = subprocess.run(  # noqa: S603
            [python, str(path), *args],
            capture_output=True,
            text=True,
            env={**os.environ, "COMFYUI_PATH": str(home)},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vlm")


@pytest.fixture(scope="session")
def vlm_measured(in_host, vlm_folder) -> dict:
    """What ``scripts/vlm.py`` measures, which also writes a tiny judge's weights."""
    return in_host("vlm.py", str(vlm_folder))


@pytest.fixture(scope="session")
def vlm_weights(vlm_measured, vlm_folder) -> str:
    """Of a tiny CLIP that answers, and knows red from blue: for the node ``TinyVLM``."""
    return str(vlm_folder / "judge.safetensors")


class Run:
    """One prompt's life: its websocket messages, binary previews and history entry.

    Attributes:
        lines: what was told under nodes, each with the node's id before it.
    """

    def __init__(self, messages: list[dict], binary: list[bytes], history: dict):
        self.messages, self.history = messages, history
        self.previews = len(binary)
        self.lines = [raw[8:].decode("utf-8") for raw in binary if raw[:4] == TEXT_EVENT]

    @property
    def status(self) -> str:
        return self.history["status"]["status_str"]

    @property
    def error(self) -> str:
        errors = [m["data"] for m in self.messages if m["type"] == "execution_error"]
        return errors[0]["exception_message"] if errors else ""

    def kinds(self) -> set[str]:
        return {message["type"] for message in self.messages}

    def output(self, node: str) -> dict:
        return self.history["outputs"][node]

    def text(self, node: str) -> str:
        return "\n".join(self.output(node)["text"])


class Server:
    """HTTP and websocket of a running ComfyUI."""

    def __init__(self, port: int, base: Path):
        self.address, self.base = f"127.0.0.1:{port}", base
        self.client = uuid.uuid4().hex

    def get(self, path: str):
        import requests

        return requests.get(f"http://{self.address}{path}", timeout=30)

    def post(self, path: str, body: dict):
        import requests

        return requests.post(f"http://{self.address}{path}", json=body, timeout=30)

    def run(self, prompt: dict, on_message=None) -> Run:
        """Queue ``prompt`` (API format) and follow it to its end.

        ``on_message`` is told of every message (None for a binary preview).
        """
        import websocket

        socket_ = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={self.client}", timeout=RUN_SECONDS
        )
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        assert answer.status_code == 200, answer.text
        prompt_id = answer.json()["prompt_id"]
        messages, binary = [], []
        while True:
            raw = socket_.recv()
            message = None if isinstance(raw, bytes) else json.loads(raw)
            if message is None:
                binary.append(raw)
            else:
                messages.append(message)
            if on_message:
                on_message(message)
            data = (message or {}).get("data", {})
            mine = data.get("prompt_id") == prompt_id
            if mine and message["type"] == "executing" and data["node"] is None:
                break
        socket_.close()
        for _ in range(100):
            history = self.get(f"/history/{prompt_id}").json()
            if prompt_id in history:
                return Run(messages, binary, history[prompt_id])
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt_id} never came into the history")

    def view(self, image: dict) -> bytes:
        query = f"filename={image['filename']}&type={image['type']}&subfolder={image['subfolder']}"
        return self.get(f"/view?{query}").content

    def load(self, name: str):
        """The tensor dictionary that ``SaveLatent`` left under ``name`` in the output folder."""
        from safetensors.torch import load_file

        return load_file(self.base / "output" / name)


@pytest.fixture(scope="session")
def server(home, python, tmp_path_factory):
    """A running server; started once."""
    with started(home, python, tmp_path_factory.mktemp("comfyui"), FOLDER) as running:
        yield running


@contextmanager
def started(
    home: Path, python: str, base: Path, folder: str, *flags: str, device: tuple = ("--cpu",)
):
    """A server of its own that finds the pack as ``custom_nodes/<folder>``; ended by its id."""
    import requests

    for name in ("custom_nodes", "models", "input", "output", "temp", "user", "elsewhere"):
        (base / name).mkdir(exist_ok=True)
    (base / "custom_nodes" / folder).symlink_to(ROOT)
    for of_tests in ("random_conditioning", "tiny_vlm_nodes"):
        (base / "custom_nodes" / of_tests).symlink_to(Path(__file__).parent / of_tests)
    shutil.copy(home / "input" / "example.png", base / "input" / "example.png")
    mapped = f"own:\n    base_path: {base}\n    reward_models: elsewhere\n"
    (base / "extra_model_paths.yaml").write_text(mapped)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, str(home / "main.py"), *device, "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(base), "--disable-api-nodes"]
    command += ["--database-url", "sqlite:///:memory:", "--preview-method", "latent2rgb"]
    command += ["--disable-auto-launch", "--cache-classic"]
    command += ["--extra-model-paths-config", str(base / "extra_model_paths.yaml"), *flags]
    log_path = base / "server.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=base, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            running = Server(port, base)
            running.pid = process.pid
            for _ in range(START_SECONDS * 2):
                assert process.poll() is None, log_path.read_text()[-4000:]
                try:
                    running.get("/system_stats")
                    break
                except requests.ConnectionError:
                    time.sleep(0.5)
            running.log = log_path
            yield running
        finally:
            process.terminate()
            process.wait(60)
