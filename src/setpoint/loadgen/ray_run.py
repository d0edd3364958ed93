"""A run over several machines, with Ray carrying the plan out to them and the records back.

Each worker is a Ray actor on a CPU of its own with its share of the schedule. Machines share no clock: once all are
ready, each begins the same delay after it is told to, so that they are apart by the time that the word takes; records
count from their worker's own start. There is no progress from afar: `on_progress` is not called.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec

from setpoint.errors import ConfigError
from setpoint.loadgen.client import LoadClient, RunOptions
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.process import deal
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.report import relative
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.worker import WorkerSpec
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

HEAD_START_S = 1.0


class Harvest(msgspec.Struct):
    """What one worker brings home; records count from its start."""

    records: list[RequestRecord]
    samples: ClientSamples


class Station:
    """One worker: takes its share, says that it is there, and goes when told."""

    def __init__(self, spec: bytes) -> None:
        self._spec = msgspec.json.decode(spec, type=WorkerSpec)

    def count(self) -> int:
        """Return how many requests its share has, once that has arrived."""
        return len(self._spec.plan)

    def go(self, delay_s: float) -> bytes:
        """Carry the share out, beginning `delay_s` from now; return a `Harvest` as JSON."""
        return asyncio.run(_work(self._spec, delay_s))


async def _work(spec: WorkerSpec, delay_s: float) -> bytes:
    """Carry out a share; no method of the actor, which Ray would make asynchronous for it."""
    records: list[RequestRecord] = []
    start_at = time.monotonic() + delay_s
    client = LoadClient(spec.target, spec.plan, spec.options, spec.lexicon, records.append)
    await client.run(start_at)
    harvest = Harvest([relative(record, start_at) for record in records], client.samples)
    return msgspec.json.encode(harvest)


def measure_on_ray(
    target: EndpointTarget,
    plan: Sequence[PlannedRequest],
    options: RunOptions | None = None,
    *,
    lexicon: Lexicon | None = None,
    warmup_s: float | None = None,
    workers: int = 1,
) -> Run:
    """Carry out `plan` with `workers` actors of the Ray cluster that this machine belongs to (or of one made here).

    Raises ConfigError when Ray is not installed, or has fewer free CPUs than workers.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("--ray needs Ray", hint="pip install ray, on every machine of the cluster") from None
    options = options or RunOptions()
    if not ray.is_initialized():
        try:
            ray.init(logging_level="ERROR", include_dashboard=False)
        except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception when it cannot start
            raise ConfigError(f"Ray did not start: {error}", hint="is the cluster up (ray status)?") from None
    free = ray.available_resources().get("CPU", 0.0)
    if free < workers:
        raise ConfigError(f"the Ray cluster has {free:g} free CPUs for {workers} workers", hint="lower --workers")
    actor = ray.remote(num_cpus=1)(Station)
    specs = deal(target, plan, options, lexicon or Lexicon(), workers)
    crew = [actor.remote(msgspec.json.encode(spec)) for spec in specs]
    ray.get([one.count.remote() for one in crew])
    brought = ray.get([one.go.remote(HEAD_START_S) for one in crew])
    harvests = [msgspec.json.decode(one, type=Harvest) for one in brought]
    return Run(
        target=target,
        options=options,
        start_at=0.0,
        records=[record for harvest in harvests for record in harvest.records],
        samples=[harvest.samples for harvest in harvests],
        warmup_s=warmup_s,
    )
