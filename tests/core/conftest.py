"""The `scheduler` of every test of the core: whatever was said to it, its invariants hold at the end."""

from collections.abc import Callable, Iterator

import pytest
from tests.core.scheduler import BATCH, CHAT, SMALL, Scheduler

from setpoint.core.strategies import Option
from setpoint.model import Capacity, ServiceClass

MakeScheduler = Callable[..., Scheduler]


@pytest.fixture
def scheduler() -> Iterator[MakeScheduler]:
    """Make schedulers: `scheduler("slack", capacity=…, classes=…, option=…)`."""
    made: list[Scheduler] = []

    def make(
        strategy: str = "continuous",
        *,
        capacity: Capacity = SMALL,
        classes: tuple[ServiceClass, ...] = (CHAT, BATCH),
        **options: Option,
    ) -> Scheduler:
        made.append(Scheduler(strategy, capacity, classes, **options))
        return made[-1]

    yield make
    for each in made:
        each.check()
