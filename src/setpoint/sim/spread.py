"""Independent runs over all cores, or over a Ray cluster; results come in the order of the jobs."""

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any, TypeVar

from setpoint.errors import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int | None = None, is_ray: bool = False
) -> list[Result]:
    """Return `work(job)` for each job; `work` and the jobs must be picklable. Raises `ConfigError` without Ray."""
    if is_ray:
        return _spread_ray(work, jobs)
    count = min(len(jobs), workers or os.cpu_count() or 1)
    if count <= 1:
        return [work(job) for job in jobs]
    with get_context("spawn").Pool(count) as pool:
        return pool.map(work, jobs, chunksize=1)


def _spread_ray(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("--ray needs Ray", hint="pip install ray, or leave --ray out to use this machine") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote: Any = ray.remote(work)
    found: list[Result] = ray.get([remote.remote(job) for job in jobs])
    return found
