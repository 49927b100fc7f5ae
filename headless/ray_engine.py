"""Jobs over many GPUs and machines: Ray actors that hold a pipeline each, jobs as their tasks.

A job whose worker dies goes back to the queue, unless its image was written before the worker died.
All machines have to see the output folder under the same path.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from .jobs import Job
from .models import Machine
from .run import Engine, Recipe, Worker, finished

log = logging.getLogger("flow_ttrl")

ATTEMPTS = 3
"""Times that a job is tried whose worker dies."""


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
            kind = ray.remote(max_restarts=-1, **wanted)(ImageWorker)
            count = min(gpus or cpus, len(jobs))
            workers = [kind.remote(recipe, machine, list(folders)) for _ in range(count)]
            yield from _made(ray, workers, recipe, jobs, folder.absolute())
        finally:
            if own:
                ray.shutdown()

    return engine


class ImageWorker:
    """What an actor is: a worker that loads its pipeline when its first job comes."""

    def __init__(self, recipe: Recipe, machine: Machine, folders: Sequence[Path]):
        self.given = recipe, machine, folders
        self.worker: Worker | None = None

    def make(self, job: Job, folder: Path) -> dict:
        if known := finished(folder, job, self.given[0]):
            return known  # written just before the worker that was at it died
        if self.worker is None:
            self.worker = Worker(*self.given)
            self.worker.pipe.set_progress_bar_config(disable=True)
        return self.worker.make(job, folder)


def _start(ray, address: str | None, gpus: int, cpus: int) -> None:
    if address is None:
        here = {"num_gpus": gpus} if gpus else {"num_cpus": cpus}
        ray.init(include_dashboard=False, log_to_driver=False, **here)
        return
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise OSError(f"expected a Ray cluster at {address}, got {error}") from error


def _made(
    ray, workers: Sequence, recipe: Recipe, jobs: Sequence[Job], folder: Path
) -> Iterator[dict]:
    """What is told of each job's image, in the order that they are finished."""
    waiting, idle, at_work = deque(jobs), deque(workers), {}
    tried = dict.fromkeys((job.name for job in jobs), 0)
    while waiting or at_work:
        while waiting and idle:
            worker, job = idle.popleft(), waiting.popleft()
            tried[job.name] += 1
            at_work[worker.make.remote(job, folder)] = worker, job
        (ready,), _ = ray.wait(list(at_work), num_returns=1)
        worker, job = at_work.pop(ready)
        idle.append(worker)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the job's own
        except ray.exceptions.RayActorError as error:
            if tried[job.name] >= ATTEMPTS:
                raise OSError(
                    f"expected {job.name} to be made within {ATTEMPTS} attempts, got a worker that "
                    f"died each time: {error}"
                ) from error
            log.warning("a worker died at %s, which is tried again", job.name)
            waiting.appendleft(job)
