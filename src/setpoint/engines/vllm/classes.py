"""The classes that vLLM loads by name; importing this module imports vLLM."""

from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from setpoint.engines.vllm.scheduler import steered


class VllmEndings:
    """How a refused request ends: as vLLM ends those that fail, or those whose client leaves."""

    version: str = vllm.__version__.partition("+")[0]
    _statuses = {"error": RequestStatus.FINISHED_ERROR, "abort": RequestStatus.FINISHED_ABORTED}  # noqa: RUF012

    def end(self, host: Any, request: Any, refusal: str) -> None:  # noqa: ANN401 - vLLM has no types for us
        """Take the request out of the scheduler."""
        host.finish_requests(request.request_id, self._statuses[refusal])

    def deliver(self, outputs: dict[int, Any], request: Any, why: str) -> None:  # noqa: ANN401 - as above
        """Add its last output to those of its client."""
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=f"setpoint: {why}",
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)


_Async = steered(AsyncScheduler, VllmEndings())
_Sync = steered(Scheduler, VllmEndings())


class SetpointScheduler(_Async):  # type: ignore[misc, valid-type] # made at run time
    """The scheduler for `--scheduler-cls`; where async scheduling is off (as on CPUs), the one made of `Scheduler`."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's own signature
        """Return a scheduler that goes with the way in which the engine core runs."""
        if vllm_config.scheduler_config.async_scheduling:
            return super().__new__(cls)
        return _Sync(vllm_config, *args, **kwargs)
