"""Service classes: what a group of requests was promised, and how much it matters."""

from typing import Literal

import msgspec

from setpoint.units import Instant, Seconds, Tokens

JudgedBy = Literal["tpot", "pace"]


class Slo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The objectives of a service class; `None` means that there is no such objective.

    `percentile` is the share of requests that must meet every objective (0.95 is P95). `judged_by` says which deadline
    the decodes have: `tpot`, token j is due at `first token + j x tpot_s`; `pace`, at `arrival + max(TTFT target, its
    actual TTFT) + j x tpot_s`, a reader's view in which an early first token banks slack. `ttft_per_prompt_token_s`
    makes the TTFT target grow with the prompt. `e2e_s` is an end-to-end target: a completion window for batch work.
    """

    percentile: float = 0.95
    ttft_s: Seconds | None = None
    ttft_per_prompt_token_s: Seconds = Seconds(0.0)
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None
    judged_by: JudgedBy = "tpot"

    def ttft_target(self, prompt_tokens: Tokens) -> Seconds | None:
        """Return the TTFT target in seconds of a prompt of `prompt_tokens`, or `None`."""
        if self.ttft_s is None:
            return None
        return Seconds(self.ttft_s + self.ttft_per_prompt_token_s * prompt_tokens)


class ServiceClass(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A named SLO with its priority.

    `band` orders classes under strict priority: 0 is the most urgent. `weight` is the worth of one request when some
    must be given up. A `is_harvest` class is batch work: it takes what the protected classes leave and is the only work
    that is preempted for others. `late` says what becomes of a request that cannot meet its TTFT target: `wait` lets it
    queue behind the feasible ones, `refuse` rejects it at once with the time after which to retry. `queue_max` bounds
    how many may wait; `wait_max_s` bounds for how long (`None`: as long as the completion window).
    """

    name: str
    slo: Slo
    band: int = 0
    weight: float = 1.0
    is_harvest: bool = False
    late: Literal["wait", "refuse"] = "wait"
    queue_max: int = 1024
    wait_max_s: Seconds | None = Seconds(60.0)


def decode_deadline(
    slo: Slo, *, arrived_at: Instant, prompt_tokens: Tokens, first_token_at: Instant, tokens: Tokens
) -> Instant | None:
    """Return when token number `tokens` after the first is due (1 is the second token), or `None`.

    Source: FairBatching (arXiv 2510.14392) for the envelope; QoServe (arXiv 2503.22562) re-anchors it at the actual
    TTFT after a miss.
    """
    if slo.tpot_s is None:
        return None
    anchor = first_token_at
    target = slo.ttft_target(prompt_tokens)
    if slo.judged_by == "pace" and target is not None:
        anchor = Instant(max(arrived_at + target, first_token_at))
    return Instant(anchor + tokens * slo.tpot_s)


def _chat(name: str, ttft_s: float, tpot_s: float, *, band: int = 0, percentile: float = 0.95) -> ServiceClass:
    slo = Slo(percentile=percentile, ttft_s=Seconds(ttft_s), tpot_s=Seconds(tpot_s))
    return ServiceClass(name=name, slo=slo, band=band)


PRESETS: dict[str, ServiceClass] = {
    c.name: c
    for c in (
        _chat("voice", 0.150, 0.040),
        _chat("code-completion", 0.150, 0.030),
        _chat("chat", 0.200, 0.050, band=1),
        _chat("agent", 1.000, 0.060, band=2),
        _chat("standard", 2.000, 0.100, band=3),
        ServiceClass(
            name="batch",
            slo=Slo(percentile=0.95, e2e_s=Seconds(24 * 3600.0)),
            band=9,
            is_harvest=True,
            queue_max=100_000,
            wait_max_s=None,
        ),
    )
}
"""The classes that come ready-made; `setpoint.toml` edits them."""
