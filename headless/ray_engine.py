"""Jobs over many GPUs and machines: Ray actors that hold a pipeline each, jobs as their tasks.

A job whose worker dies goes back to the queue, unless its image was written before the worker died,
and so does one that failed for a reason that may pass. All machines have to see the output folder
under the same path.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..rewards.networks import found_device
from .jobs import Job
from .models import Machine
from .recipe import Recipe
from .run import Engine, Worker, finished

log = logging.getLogger("flow_ttrl")

ATTEMPTS = 3
"""Times that each worker may die before the next image is there, and that a job may be tried."""


def on_ray(address: str | None = None, *, gpus: int = 0, cpus: int = 0) -> Engine:
    """An engine of ``gpus`` workers with a GPU each, or of ``cpus`` workers without.

    Args:
        address: of the cluster; None starts one on this machine and ends it with the run.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no workers, or both kinds.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "expected the package ray for engine ray, got none; run: pip install ray"
        ) from error
    if (gpus > 0) == (cpus > 0) or min(gpus, cpus) < 0:
        raise ValueError(
            f"expected --num-gpus or --num-cpus from 1, got {gpus} and {cpus}; say how many workers"
        )

    def engine(
        recipe: Recipe,
        machine: Machine,
        folders: Sequence[Path],
        jobs: Sequence[Job],
        folder: Path,
    ) -> Iterator[dict]:
        own = not ray.is_initialized()
        if own:
            _start(ray, address, gpus, cpus)
        try:
            wanted = {"num_gpus": 1} if gpus else {"num_cpus": 1}
            kind = ray.remote(**wanted)(ImageWorker)
            given = recipe, machine, list(folders), [job.prompt for job in jobs], gpus > 0
            workers = Workers(ray, lambda: kind.remote(*given))
            yield from workers.made(jobs, min(gpus or cpus, len(jobs)), folder.absolute())
        finally:
            if own:
                ray.shutdown()

    return engine


class ImageWorker:
    """What an actor is: a worker, once it is told to load its pipeline.

    Args:
        prompts: of all jobs, which the rewards have a look at before the first image.
        on_gpu: whether it was promised a GPU.
    """

    def __init__(
        self,
        recipe: Recipe,
        machine: Machine,
        folders: Sequence[Path],
        prompts: list[str],
        on_gpu: bool,
    ):
        self.recipe, self.machine, self.folders = recipe, machine, folders
        self.prompts, self.on_gpu = prompts, on_gpu
        self.worker: Worker | None = None

    def load(self) -> None:
        device = found_device(self.machine.device)
        if self.on_gpu and device.type == "cpu":
            raise ValueError(
                "expected a GPU that PyTorch can use on every machine with --num-gpus, got one "
                f"where torch {torch.__version__} finds none; install its build for the GPU there"
            )
        self.worker = Worker(self.recipe, self.machine, self.folders, self.prompts)
        self.worker.pipe.set_progress_bar_config(disable=True)

    def make(self, job: Job, folder: Path) -> dict:
        known = finished(folder, job, self.recipe)  # by one that died when it had written it
        return known or self.worker.make(job, folder)


class Workers:
    """The actors of a run. One gets a job when it has loaded; a new one comes for one that died."""

    def __init__(self, ray, new: Callable[[], Any]):
        self.ray, self.new = ray, new
        self.at_work: dict[Any, tuple[Any, Job | None]] = {}

    def made(self, jobs: Sequence[Job], count: int, folder: Path) -> Iterator[dict]:
        """What is told of each job's image, in the order that they are finished."""
        waiting, idle, lost, tried = deque(jobs), deque(), 0, Counter()
        for _ in range(count):
            self._begin()
        while waiting or any(job for _, job in self.at_work.values()):
            while waiting and idle:
                worker, job = idle.popleft(), waiting.popleft()
                self.at_work[worker.make.remote(job, folder)] = worker, job
            (ready,), _ = self.ray.wait(list(self.at_work), num_returns=1)
            worker, job = self.at_work.pop(ready)
            try:
                answer = self.ray.get(ready)
            except self.ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else OSError(str(error))
                tried[job] += 1
                if job is None or isinstance(cause, ValueError) or tried[job] >= ATTEMPTS:
                    raise cause from None  # what went wrong in the job
                log.warning("%s failed and is tried again: %s", job.name, cause)
                waiting.append(job)
                idle.append(worker)
                continue
            except self.ray.exceptions.RayError as error:  # killed, out of memory, machine gone
                lost += 1
                if lost > ATTEMPTS * count:
                    told = f"expected workers that live, got {lost} that died: {error}"
                    raise OSError(told) from error
                if job is not None:
                    log.warning("a worker died at %s, which is made by another", job.name)
                    waiting.appendleft(job)
                self._begin()
                continue
            idle.append(worker)
            if job is not None:
                lost = 0
                yield answer

    def _begin(self) -> None:
        worker = self.new()
        self.at_work[worker.load.remote()] = worker, None


def _start(ray, address: str | None, gpus: int, cpus: int) -> None:
    """Begin Ray, or join a cluster, and see that it has as much as is asked for.

    Raises:
        OSError: no cluster there.
        ValueError: fewer GPUs or CPUs, for which workers would wait without end.
    """
    # GPUs are what Ray finds, not what is asked for; a worker on CPUs may share one
    here = {} if gpus else {"num_cpus": cpus}
    asked = {"include_dashboard": False, **here} if address is None else {"address": address}
    try:
        if address is not None:
            _reach(address)
        ray.init(log_to_driver=False, **asked)
    except OSError as error:
        raise OSError(f"expected a Ray cluster at {address}, got {error}") from error
    kind, count = ("GPU", gpus) if gpus else ("CPU", cpus)
    found = int(ray.cluster_resources().get(kind, 0))
    if found < count:
        ray.shutdown()
        raise ValueError(
            f"expected --num-{kind.lower()}s within what Ray finds, {found}, got {count}; ask for "
            "fewer, or start Ray on more machines"
        )


def _reach(address: str) -> None:
    """Raise OSError where nobody answers; Ray itself would try for a very long time."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # else a name that Ray knows, such as auto
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()
