"""The scheduler class: a class of vLLM with the hooks of a pilot, made for whichever base is at hand.

Each hook calls what it overrides and tells the pilot; only `schedule` lets the pilot act before. A refused request is
ended in vLLM at once, and its last output goes out with the next outputs of any kind.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from setpoint.engines.vllm.build import machine_maker, open_journal
from setpoint.engines.vllm.host import TESTED, HostRequest, StepResult, check
from setpoint.engines.vllm.options import PluginOptions, read_options
from setpoint.engines.vllm.parts import Parts
from setpoint.engines.vllm.pilot import Pilot
from setpoint.engines.vllm.queue import PlannedQueue
from setpoint.engines.vllm.seat import Seat
from setpoint.errors import ConfigError

log = logging.getLogger(__name__)


class Endings(Protocol):
    """How a refused request ends in vLLM: the types that only vLLM has."""

    version: str

    def end(self, host: Any, request: Any, refusal: str) -> None:  # noqa: ANN401 - vLLM's own types
        """Take the request out of the scheduler, as an `error` or an `abort`."""
        ...

    def deliver(self, outputs: dict[int, Any], request: Any, why: str) -> None:  # noqa: ANN401 - as above
        """Add the last output of an ended request to what goes to its client."""
        ...


class _Refused(NamedTuple):
    request: HostRequest
    why: str


def steered(base: Any, endings: Endings, environment: Mapping[str, str] = os.environ) -> Any:  # noqa: ANN401, C901
    """Return a subclass of the scheduler class `base` that a pilot steers; `endings` are vLLM's own."""

    class Steered(base):  # type: ignore[misc] # the base is known at run time
        """vLLM's scheduler, with Setpoint's policy deciding each step."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's signature, whatever it is
            super().__init__(*args, **kwargs)
            try:
                check(self, endings.version)
                options = read_options(self.vllm_config.additional_config, environment)
            except ConfigError as error:
                # vLLM shows what Python shows of an exception, and nobody else is there to show the hint
                error.add_note(error.hint or "see docs/vllm.md")
                raise
            self.setpoint_refused: list[_Refused] = []
            self.waiting = PlannedQueue(is_by_priority=self.scheduler_config.policy == "priority")
            self.setpoint = _pilot(self, options, endings)

        def schedule(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as above, as in all that follows
            schedule = super().schedule
            return self.setpoint.schedule(lambda: schedule(*args, **kwargs))

        def add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            is_new = request.request_id not in self.requests
            super().add_request(request, *args, **kwargs)
            if is_new:
                self.setpoint.arrived(request)

        def update_from_output(self, result: StepResult, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            update = super().update_from_output
            outputs = self.setpoint.ended(result, lambda: update(result, *args, **kwargs))
            refused, self.setpoint_refused = self.setpoint_refused, []
            for request, why in refused:
                endings.deliver(outputs, request, why)
            return outputs

        def make_stats(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            stats = super().make_stats(*args, **kwargs)
            table = getattr(stats, "num_kv_fetch_reqs_by_stage", None)
            if table is not None:
                table.update(self.setpoint.stats())
            return stats

        def shutdown(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            self.setpoint.close()
            super().shutdown(*args, **kwargs)

        def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            super()._preempt_request(request, *args, **kwargs)
            self.setpoint.preempted(request)

        def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.setpoint.freed(request)
            return super()._free_request(request, *args, **kwargs)

    return Steered


def _pilot(host: Any, options: PluginOptions, endings: Endings) -> Pilot:  # noqa: ANN401 - a `Host` and more
    def refuse(request: HostRequest, why: str) -> None:
        endings.end(host, request, options.refusal)
        host.setpoint_refused.append(_Refused(request, why))

    maker = machine_maker(host, options)
    pilot = Pilot(
        Parts(
            seat=Seat(host),
            options=options,
            make_machine=maker,
            refuse=refuse,
            journal=open_journal(host, options),
        )
    )
    if endings.version not in TESTED:
        log.warning("vLLM %s is none of the tested versions (%s)", endings.version, ", ".join(TESTED))
    name = options.settings.strategy.name
    log.info(
        "setpoint steers this scheduler: strategy %s, default class %s", name, options.settings.server.default_class
    )
    return pilot
