"""What the pilot is put together from."""

import time
from collections.abc import Callable
from typing import NamedTuple

from setpoint.core.steered import SteeredMachine
from setpoint.engines.journal import JournalFile
from setpoint.engines.vllm.host import HostRequest
from setpoint.engines.vllm.options import PluginOptions
from setpoint.engines.vllm.seat import Seat


class Parts(NamedTuple):
    """What a pilot works with.

    `make_machine` gives a new machine; `refuse` ends a request in vLLM, for a reason in words; `journal` gets each
    event with its commands; `clock` is monotonic, `wall` is the clock that dates the arrivals.
    """

    seat: Seat
    options: PluginOptions
    make_machine: Callable[[], SteeredMachine]
    refuse: Callable[[HostRequest, str], None]
    journal: JournalFile | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
