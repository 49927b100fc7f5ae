"""Jobs over Ray's workers: the same files as without, and one that is killed loses nothing."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from test_generate import _RUN, asked, files, generate

from flow_ttrl.cli import main
from flow_ttrl.headless.jobs import Job
from flow_ttrl.headless.ray_engine import Workers

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
            there = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
            answer, _ = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode == 0, log.read_text()
    assert "which is made by another" in log.read_text()
    rows = json.loads(answer)["images"]
    assert [row["seed"] for row in rows] == list(range(8))
    assert files(out) == files(tmp_path / "one")
    whole = [path for path in there if path.with_stem(f"{path.stem}_plain") in there]
    assert whole
    assert all(path.stat().st_mtime_ns == there[path] for path in whole)  # none was made twice


class Exceptions:
    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        def __init__(self, cause):
            super().__init__(str(cause))
            self.cause = cause


class Actors:
    """Ray's part in a run, in this process: each answer is the next of those that are given."""

    exceptions = Exceptions

    def __init__(self, answers):
        self.answers, self.begun, self.asked = iter(answers), 0, []

    def __call__(self):
        self.begun += 1
        remote = SimpleNamespace(remote=lambda *given: self.asked.append(given) or object())
        return SimpleNamespace(load=SimpleNamespace(remote=object), make=remote)

    def wait(self, futures, num_returns):
        return futures[:1], futures[1:]

    def get(self, future):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


JOBS = [Job(name, "a red circle", 0) for name in "ab"]
TOLD = {"name": "a"}


def made(*answers) -> tuple[list, Actors]:
    actors = Actors(answers)
    return list(Workers(actors, actors).made(JOBS, 1, None)), actors


def test_a_worker_that_is_lost_for_any_reason_is_replaced():
    """Ray's own errors besides a death: out of memory, a machine that went away."""
    rows, actors = made(None, Exceptions.RayError("out of memory"), None, TOLD, TOLD)
    assert rows == [TOLD, TOLD]
    assert actors.begun == 2
    assert [job.name for job, _ in actors.asked] == ["a", "a", "b"]
    with pytest.raises(OSError, match="expected workers that live, got 4"):
        made(*[Exceptions.RayError("gone")] * 4)


def test_a_job_that_fails_is_tried_again_and_in_the_end_told():
    failed = Exceptions.RayTaskError(RuntimeError("out of memory on the card"))
    rows, actors = made(None, failed, TOLD, failed, TOLD)
    assert rows == [TOLD, TOLD]
    assert [job.name for job, _ in actors.asked] == ["a", "b", "a", "a"]
    with pytest.raises(RuntimeError, match="on the card"):
        made(None, failed, TOLD, failed, failed)
    with pytest.raises(ValueError, match="wrong"):  # which no second try would mend
        made(None, Exceptions.RayTaskError(ValueError("wrong")))
    with pytest.raises(RuntimeError, match="no model"):
        made(Exceptions.RayTaskError(RuntimeError("no model")))
    with pytest.raises(OSError, match="in another tongue"):
        made(
            None,
            Exceptions.RayTaskError("in another tongue"),
            TOLD,
            *[Exceptions.RayTaskError("in another tongue")] * 2,
        )


def worker_at_work(running: subprocess.Popen, out) -> int:
    """The process of a worker, once the first image is there."""
    import psutil

    until = time.monotonic() + 240
    while time.monotonic() < until and running.poll() is None:
        if out.is_dir() and any(out.glob("*_[0-9].png")):
            for child in psutil.Process(running.pid).children(recursive=True):
                if "ImageWorker.make" in " ".join(child.cmdline()):
                    return child.pid
        time.sleep(0.05)
    raise AssertionError("no worker of Ray was found at work")


def test_workers_have_to_be_asked_for(capsys, tmp_path):
    pytest.importorskip("ray", reason="engine ray needs ray")
    argv = ["generate", *ARGV, "--engine", "ray", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "expected --num-gpus or --num-cpus from 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is there")
def test_without_ray_it_is_asked_for(capsys, tmp_path):
    assert main(["generate", *ARGV, *WORKERS, "--out", str(tmp_path / "out")]) == 2
    assert "pip install ray" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "told"),
    [(["--num-gpus", "8"], "what Ray finds, 0, got 8"), (["--address", "127.0.0.1:1"], "at 127")],
)
def test_fewer_workers_than_asked_for_are_told_at_once(capsys, tmp_path, workers, told):
    ray = pytest.importorskip("ray", reason="engine ray needs ray")
    argv = ["generate", *ARGV[:-3], *WORKERS[:2], *workers, "--out", str(tmp_path / "out")]
    if "--address" in workers:
        argv += ["--num-cpus", "1"]
    try:
        assert main(argv) == 2
    finally:
        ray.shutdown()
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.png"))
