"""What a replica does under a lasting load, from its step time alone: a mean field, no event is simulated.

With B sequences decoding, p prompt and o output tokens each, every step must also take in B p / o prompt tokens, in
lumps of one prompt or one budget. The mean step is then

    tau = (1 - q) step(B, C) + q step(B, C, lump),   C = B (p + o / 2),   q = B p / (o x lump)

and B / (o tau) requests finish a second. Little's law closes the loop: over a closed loop of K requests, B plus those
in prefill plus those waiting is K; under an offered load the B is sought that finishes what arrives. KV room and slots
bound B. Arrivals wait for the prompts before them as in an M/D/1 queue of prefills: rho s / (2 (1 - rho)) on average,
ln(100 rho) s / (2 (1 - rho)) at P99 (Allen-Cunneen with deterministic service). On a simulated replica the form came
within 3 % of TPOT under Poisson arrivals.
"""

from collections.abc import Callable
from math import log
from typing import Literal, Protocol

import msgspec

from setpoint.steptime.memory import Fit

_HALVINGS = 28
_NEARLY = 0.995
_IDLE_MIN = 0.05

Bound = Literal["load", "concurrency", "kv", "slots", "prefill", "target"]


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Mean tokens of a request; `cached_tokens` of its prompt are found in the prefix cache."""

    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0

    @property
    def held(self) -> float:
        """KV tokens that a running sequence holds on average."""
        return self.prompt_tokens + self.output_tokens / 2


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine allows: sequences at once, and tokens a step."""

    sequences_max: int = 256
    budget_tokens: int = 8192


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The steady state of one replica.

    `requests_per_s` and `output_tokens_per_s` finished; `tpot_s` and `ttft_s` of the median request; `decodes` running
    on average; `bound`: what keeps the rate from being higher.
    """

    requests_per_s: float
    output_tokens_per_s: float
    tpot_s: float
    ttft_s: float
    decodes: float
    bound: Bound


class StepSeconds(Protocol):
    """The time of a step, for fractions of sequences and tokens too."""

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        """Return the expected seconds, zero for an empty step."""
        ...


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: the time of its steps, its KV room and its engine's limits."""

    step: StepSeconds
    fit: Fit
    limits: Limits = Limits()

    def room(self, lengths: Lengths) -> tuple[float, Bound]:
        """Return how many sequences of such lengths can run at once, and what bounds that."""
        by_kv = self.fit.sequences(lengths.held)
        slots = float(self.limits.sequences_max)
        return (by_kv, "kv") if by_kv < slots else (slots, "slots")

    def saturated(self, lengths: Lengths) -> Estimate:
        """Return the steady state under a backlog that never ends; all zero when not one sequence fits."""
        room, bound = self.room(lengths)
        return self._filled(lengths, room, bound)

    def closed_loop(self, lengths: Lengths, concurrency: float) -> Estimate:
        """Return the steady state of `concurrency` clients, each sending its next request when the last is done."""
        room, bound = self.room(lengths)
        if concurrency <= room:
            return self._filled(lengths, concurrency, "concurrency")
        full = self._filled(lengths, room, bound)
        if full.requests_per_s <= 0.0:
            return full
        wait_s = (concurrency - room) / full.requests_per_s
        return msgspec.structs.replace(full, ttft_s=full.ttft_s + wait_s)

    def open_loop(self, lengths: Lengths, requests_per_s: float) -> Estimate:
        """Return the steady state under arrivals at this rate; that of saturation when it is more than can be done."""
        full = self.saturated(lengths)
        if full.requests_per_s <= requests_per_s:
            return full
        goal = requests_per_s * lengths.output_tokens
        return self._arriving(lengths, _root(lambda b: b / self._cycle(lengths, b)[0], goal, full.decodes), "load")

    def within(self, lengths: Lengths, tpot_s: float, ttft_p99_s: float) -> Estimate:
        """Return the steady state at the highest rate with a mean TPOT and a P99 of TTFT at or below these."""
        full = self.saturated(lengths)
        if full.decodes <= 0.0:
            return full

        def strain(decodes: float) -> float:
            tau, prefill_s, busy = self._cycle(lengths, decodes)
            tail_s = log(max(1.0, 100.0 * busy)) * prefill_s / (2.0 * max(1.0 - busy, _IDLE_MIN))
            return max(tau / tpot_s, (prefill_s + tau + tail_s) / ttft_p99_s)

        if strain(full.decodes) <= 1.0:
            return self._arriving(lengths, full.decodes, full.bound)
        return self._arriving(lengths, _root(strain, 1.0, full.decodes), "target")

    def _arriving(self, lengths: Lengths, decodes: float, bound: Bound) -> Estimate:
        """Return the state with so many decodes under Poisson arrivals, which wait for the prompts before them."""
        _, prefill_s, busy = self._cycle(lengths, decodes)
        wait_s = 0.5 * prefill_s * busy / max(1.0 - busy, _IDLE_MIN)
        served = self._estimate(lengths, decodes, bound)
        return msgspec.structs.replace(served, ttft_s=served.ttft_s + wait_s)

    def _filled(self, lengths: Lengths, sequences: float, bound: Bound) -> Estimate:
        """Return the state in which `sequences` are in prefill or decoding at all times."""
        if sequences <= 0.0 or not self.fit.is_fitting:
            return Estimate(
                requests_per_s=0.0, output_tokens_per_s=0.0, tpot_s=0.0, ttft_s=0.0, decodes=0.0, bound="kv"
            )
        ceiling = sequences
        if lengths.prompt_tokens > 0.0:
            computed = lengths.prompt_tokens - lengths.cached_tokens
            ceiling = min(ceiling, self.limits.budget_tokens * lengths.output_tokens / max(computed, 1e-9))
        present: Callable[[float], float] = lambda b: b + self._in_prefill(lengths, b)  # noqa: E731 - a bound argument
        if present(ceiling) <= sequences:
            return self._estimate(lengths, ceiling, "prefill" if ceiling < sequences else bound)
        return self._estimate(lengths, _root(present, sequences, ceiling), bound)

    def _in_prefill(self, lengths: Lengths, decodes: float) -> float:
        tau, prefill_s, _ = self._cycle(lengths, decodes)
        return decodes / (lengths.output_tokens * tau) * prefill_s

    def _estimate(self, lengths: Lengths, decodes: float, bound: Bound) -> Estimate:
        tau, prefill_s, _ = self._cycle(lengths, decodes)
        rate = decodes / (lengths.output_tokens * tau)
        return Estimate(
            requests_per_s=rate,
            output_tokens_per_s=decodes / tau,
            tpot_s=tau,
            ttft_s=prefill_s + 0.5 * tau,
            decodes=decodes,
            bound=bound,
        )

    def _cycle(self, lengths: Lengths, decodes: float) -> tuple[float, float, float]:
        """Return (mean step, seconds that a prompt is in prefill, share of the time for prefill that is used)."""
        prompt, output = lengths.prompt_tokens - lengths.cached_tokens, lengths.output_tokens
        context = decodes * lengths.held
        base = self.step.seconds_of(decodes, context)
        if prompt <= 0.0:
            return base, base, 0.0
        needed = decodes * prompt / output
        lump = min(float(self.limits.budget_tokens), max(prompt, needed))
        mixed = self.step.seconds_of(decodes, context, lump, lump * (lengths.cached_tokens + prompt / 2), lump / prompt)
        often = min(1.0, needed / lump)
        tau = (1.0 - often) * base + often * mixed
        prefill_s = mixed * max(1.0, prompt / lump)
        return tau, prefill_s, often * mixed / tau * lump / self.limits.budget_tokens


def disaggregated(
    prefill: Replica, prefills: int, decode: Replica, decodes: int, lengths: Lengths, concurrency: float
) -> Estimate:
    """Return the steady state of a closed loop over `prefills` replicas that only prefill and `decodes` that decode.

    The prefill replicas are a queue with `prefills` servers of one prompt each, the decode replicas a delay that grows
    with their batch; the transfer of the KV cache hides behind prefill. Rates are those of all replicas together.
    """
    prompt, output = lengths.prompt_tokens, lengths.output_tokens
    service_s = prefill.step.seconds_of(0.0, 0.0, prompt, prompt * prompt / 2, 1.0)
    rate_max = prefills / service_s
    room, _ = decode.room(lengths)

    def tau(running: float) -> float:
        each = running / decodes
        return decode.step.seconds_of(each, each * lengths.held)

    def present(rate: float) -> float:
        running = _root(lambda b: b / (output * tau(b)), rate, min(concurrency, room * decodes))
        busy = rate / rate_max
        waiting = rate * service_s * (1.0 + 0.5 * busy / (prefills * max(1.0 - busy, 1e-3)))
        return running + waiting

    fastest = min(concurrency, room * decodes)
    ceiling = min(rate_max * _NEARLY, fastest / (output * tau(fastest)))
    is_bound = present(ceiling) <= concurrency
    rate = ceiling if is_bound else _root(present, concurrency, ceiling)
    running = _root(lambda b: b / (output * tau(b)), rate, fastest)
    return Estimate(
        requests_per_s=rate,
        output_tokens_per_s=rate * output,
        tpot_s=tau(running),
        ttft_s=max(service_s, (concurrency - running) / rate),
        decodes=running,
        bound="prefill" if is_bound else "concurrency",
    )


def _root(rising: Callable[[float], float], goal: float, highest: float) -> float:
    """Return where `rising` reaches `goal` in 0..`highest`, by halving."""
    low, high = 0.0, highest
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if rising(middle) < goal:
            low = middle
        else:
            high = middle
    return high
