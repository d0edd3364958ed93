"""What a client asks for."""

import msgspec

from setpoint.model.service import ServiceClass, Slo
from setpoint.units import Instant, Seconds, Tokens


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request; immutable, and free of its text: the core counts tokens and never sees them.

    `cached_tokens` of the prompt are already in the KV cache through a shared prefix that the engine keeps pinned
    until the request is admitted. `received_tokens` more were computed elsewhere: their KV comes with the request, and
    takes room like its own once it is admitted (a prefill replica handed it over). `output_tokens_max` bounds the
    answer. `ttft_s` and `tpot_s` override the targets of the class for this request alone.
    """

    id: int
    class_name: str
    arrived_at: Instant
    prompt_tokens: Tokens
    output_tokens_max: Tokens
    cached_tokens: Tokens = Tokens(0)
    received_tokens: Tokens = Tokens(0)
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None

    def slo(self, service_class: ServiceClass) -> Slo:
        """Return the objectives of this request: those of its class, less what the request overrides."""
        if self.ttft_s is None and self.tpot_s is None:
            return service_class.slo
        slo = service_class.slo
        return msgspec.structs.replace(
            slo,
            ttft_s=slo.ttft_s if self.ttft_s is None else self.ttft_s,
            ttft_per_prompt_token_s=slo.ttft_per_prompt_token_s if self.ttft_s is None else Seconds(0.0),
            tpot_s=slo.tpot_s if self.tpot_s is None else self.tpot_s,
        )
