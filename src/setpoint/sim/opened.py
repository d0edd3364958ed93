"""A request of a cluster between its coming and its end, whatever replica it is on."""

import msgspec

from setpoint.model import Request, ServiceClass
from setpoint.sim.prefix import prefix_of
from setpoint.sim.stepping import new_record
from setpoint.units import Instant, Seconds, Tokens
from setpoint.workload import PlannedRequest

_PATIENCE = 4.0


class Open:
    """A request that has come and not ended: its record, the blocks that it begins with, and how far it has come."""

    __slots__ = ("block_tokens", "output_tokens", "planned", "prefix", "record", "request", "stage")

    def __init__(self, planned: PlannedRequest, request: Request) -> None:
        """Begin at the door."""
        self.planned = planned
        self.request = request
        self.output_tokens = planned.output_tokens
        self.record = new_record(request, planned.at_s)
        self.prefix, self.block_tokens = prefix_of(planned)
        self.stage = "whole"

    def handed_over(self, now: float, service_class: ServiceClass) -> Request:
        """Return the request as a decode replica gets it at `now`: its first token is there, and the KV of its prompt.

        Its next token is due after a few times what a token may take.
        """
        request = self.request
        slo = request.slo(service_class)
        return msgspec.structs.replace(
            request,
            arrived_at=Instant(now),
            prompt_tokens=Tokens(request.prompt_tokens + 1),
            output_tokens_max=Tokens(request.output_tokens_max - 1),
            received_tokens=Tokens(request.prompt_tokens),
            ttft_s=None if slo.ttft_s is None else Seconds(_PATIENCE * (slo.tpot_s or slo.ttft_s)),
        )
