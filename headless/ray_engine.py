"""Jobs over many GPUs and machines: Ray actors that hold a pipeline each, jobs as their tasks.

A job whose worker dies goes back to the queue, unless its image was written before the worker died.
All machines have to see the output folder under the same path.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .jobs import Job
from .models import Machine
from .run import Engine, Recipe, Worker, finished

log = logging.getLogger("flow_ttrl")

ATTEMPTS = 3
"""Times that each worker may die before the next image is there."""


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
            workers = Workers(ray, lambda: kind.remote(recipe, machine, list(folders)))
            yield from workers.made(jobs, min(gpus or cpus, len(jobs)), folder.absolute())
        finally:
            if own:
                ray.shutdown()

    return engine


class ImageWorker:
    """What an actor is: a worker, once it is told to load its pipeline."""

    def __init__(self, recipe: Recipe, machine: Machine, folders: Sequence[Path]):
        self.given = recipe, machine, folders
        self.worker: Worker | None = None

    def load(self) -> None:
        self.worker = Worker(*self.given)
        self.worker.pipe.set_progress_bar_config(disable=True)

    def make(self, job: Job, folder: Path) -> dict:
        known = finished(folder, job, self.given[0])  # by one that died when it had written it
        return known or self.worker.make(job, folder)


class Workers:
    """The actors of a run. One gets a job when it has loaded; a new one comes for one that died."""

    def __init__(self, ray, new: Callable[[], Any]):
        self.ray, self.new = ray, new
        self.at_work: dict[Any, tuple[Any, Job | None]] = {}

    def made(self, jobs: Sequence[Job], count: int, folder: Path) -> Iterator[dict]:
        """What is told of each job's image, in the order that they are finished."""
        waiting, idle, lost = deque(jobs), deque(), 0
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
                raise error.cause from None  # what went wrong in the job
            except self.ray.exceptions.RayActorError as error:
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
    if address is None:
        here = {"num_gpus": gpus} if gpus else {"num_cpus": cpus}
        ray.init(include_dashboard=False, log_to_driver=False, **here)
        return
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise OSError(f"expected a Ray cluster at {address}, got {error}") from error
