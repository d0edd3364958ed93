"""What goes wrong, and when: a schedule that is declared, so that a run with faults repeats like any other.

[network]
delay_ms = 2                # each way between the door and a replica

[[crash]]
at_s = 60
replica = 0
restart_after_s = 30        # without it the replica stays away
cold_start_s = 90           # loading the weights

[[slow]]
at_s = 100
for_s = 60
replica = 1
factor = 2.5                # each step takes so many times as long

[[scale]]                   # what an autoscaler decides, and how long it takes
at_s = 200
pool = "main"
replicas = 4
delay_s = 120               # from the decision to the first request; fewer replicas end what they have

[[spike]]
at_s = 300
for_s = 30
factor = 3                  # arrivals in this time come so many times as often
"""

import tomllib
from typing import Annotated

import msgspec
from msgspec import Meta

from setpoint.errors import ConfigError

Instant_ = Annotated[float, Meta(ge=0.0)]
Positive = Annotated[float, Meta(gt=0.0)]
_HINT = "see docs/simulate.md for an example of a fault schedule"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are refused."""


class Network(_Table, frozen=True, kw_only=True):
    """The delay of each way between the door and a replica."""

    delay_ms: Annotated[float, Meta(ge=0.0)] = 0.0


class Crash(_Table, frozen=True, kw_only=True):
    """A replica is lost with all that it had."""

    at_s: Instant_
    replica: Annotated[int, Meta(ge=0)]
    restart_after_s: Instant_ | None = None
    cold_start_s: Instant_ = 0.0


class Slow(_Table, frozen=True, kw_only=True):
    """The steps of a replica take `factor` times as long."""

    at_s: Instant_
    for_s: Positive
    replica: Annotated[int, Meta(ge=0)]
    factor: Positive


class Scale(_Table, frozen=True, kw_only=True):
    """A pool has another number of replicas, `delay_s` after `at_s`."""

    at_s: Instant_
    pool: str
    replicas: Annotated[int, Meta(ge=0)]
    delay_s: Instant_ = 0.0


class Spike(_Table, frozen=True, kw_only=True):
    """Arrivals between `at_s` and `at_s + for_s` come `factor` times as often."""

    at_s: Instant_
    for_s: Positive
    factor: Annotated[float, Meta(ge=1.0)]


class FaultSchedule(_Table, frozen=True, kw_only=True):
    """The whole schedule; the default is a day without faults."""

    network: Network = Network()
    crash: tuple[Crash, ...] = ()
    slow: tuple[Slow, ...] = ()
    scale: tuple[Scale, ...] = ()
    spike: tuple[Spike, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing ever happens to a replica or on the way to it."""
        return not (self.crash or self.slow or self.scale or self.network.delay_ms)


def words_of(fault: Crash | Slow | Scale | Spike) -> str:
    """Return what names a fault of the schedule in a message."""
    if isinstance(fault, Crash):
        what = f"the crash of replica {fault.replica}"
    elif isinstance(fault, Slow):
        what = f"the slow replica {fault.replica}"
    elif isinstance(fault, Scale):
        what = f"the scaling of pool {fault.pool} to {fault.replicas}"
    else:
        what = "the spike"
    return f"{what} at {fault.at_s:g} s"


def late_of(schedule: FaultSchedule, last_s: float, drain_s: float) -> list[Crash | Slow | Scale | Spike]:
    """Return the faults that lie beyond any run whose last request comes at `last_s` and that ends `drain_s` later."""
    spikes = [spike for spike in schedule.spike if spike.at_s <= last_s]
    end_s = max([last_s, *(spike.at_s + spike.for_s for spike in spikes)]) + drain_s
    to_replicas: list[Crash | Slow | Scale] = [*schedule.crash, *schedule.slow, *schedule.scale]
    late = (fault for fault in to_replicas if fault.at_s > end_s)
    return [*late, *(spike for spike in schedule.spike if spike.at_s > last_s)]


def overlapping(schedule: FaultSchedule) -> Slow | None:
    """Return a slow time that begins before an earlier one of its replica is over, or `None`."""
    over_at: dict[int, float] = {}
    for slow in sorted(schedule.slow, key=lambda slow: slow.at_s):
        if slow.at_s < over_at.get(slow.replica, 0.0):
            return slow
        over_at[slow.replica] = slow.at_s + slow.for_s
    return None


def parse_faults(text: str, where: str = "the fault schedule") -> FaultSchedule:
    """Return the schedule that the TOML `text` holds; raises `ConfigError`, which names `where` and the place."""
    try:
        return msgspec.convert(tomllib.loads(text), FaultSchedule)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}", hint=_HINT) from error
    except msgspec.ValidationError as error:
        is_single = "`array`, got `object`" in str(error)
        hint = "each fault has two brackets: [[crash]], [[slow]], [[scale]], [[spike]]" if is_single else _HINT
        raise ConfigError(f"{where}: {error}", hint=hint) from error
