"""Jobs over Ray's workers: the same files as without, and one that is killed loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_generate import _RUN, asked, files, generate

from flow_ttrl.cli import main

psutil = pytest.importorskip("psutil", reason="Ray brings psutil")
ARGV = ("--model", "tiny-sd3", *asked("a red circle"), "--images", "8", "--steps", "6")
ARGV += ("--budget", "3", "--device", "cpu", "--baseline")
WORKERS = ("--engine", "ray", "--num-cpus", "2")


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_makes_nothing_twice(capsys, tmp_path):
    pytest.importorskip("ray", reason="engine ray needs ray")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives a worker of one CPU, since sums round by the threads
    try:
        generate(capsys, tmp_path / "one", *ARGV)
    finally:
        torch.set_num_threads(threads)
    out, log = tmp_path / "many", tmp_path / "log"
    command = [sys.executable, "-c", _RUN, "generate", *ARGV, *WORKERS, "--out", str(out), "--json"]
    with log.open("w") as told:
        running = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=told, text=True
        )
        try:
            os.kill(worker_at_work(running, out), signal.SIGKILL)
            answer, _ = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode == 0, log.read_text()
    assert "which is made by another" in log.read_text()
    rows = json.loads(answer)["images"]
    assert [row["seed"] for row in rows] == list(range(8))
    assert files(out) == files(tmp_path / "one")


def worker_at_work(running: subprocess.Popen, out) -> int:
    """The process of a worker, once the first image is there."""
    until = time.monotonic() + 240
    while time.monotonic() < until and running.poll() is None:
        if out.is_dir() and any(out.glob("*_[0-9].png")):
            for child in psutil.Process(running.pid).children(recursive=True):
                if "ImageWorker.make" in " ".join(child.cmdline()):
                    return child.pid
        time.sleep(0.05)
    raise AssertionError("no worker of Ray was found at work")


def test_workers_have_to_be_asked_for(capsys, tmp_path):
    argv = ["generate", *ARGV, "--engine", "ray", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
