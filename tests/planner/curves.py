"""Trials made by hand: a rate, and how many of the requests needed how much longer targets."""

from collections.abc import Sequence

from setpoint.metrics import RequestRecord, summarize
from setpoint.model import PRESETS, ServiceClass
from setpoint.planner.trial import Trial, make_trial


def records(rate: float, ttft_s: Sequence[float], *, tokens: int = 11, tpot_s: float = 0.02) -> list[RequestRecord]:
    """Return one chat request for each TTFT, evenly spaced at `rate`."""
    made = []
    for index, ttft in enumerate(ttft_s):
        due = index / rate
        made.append(
            RequestRecord(
                id=index,
                class_name="chat",
                scheduled_at=due,
                sent_at=due,
                first_token_at=due + ttft,
                ended_at=due + ttft + (tokens - 1) * tpot_s,
                prompt_tokens=40,
                output_tokens=tokens,
            )
        )
    return made


def trial(
    rate: float,
    ttft_s: Sequence[float],
    *,
    strategy: str = "slack",
    tpot_s: float = 0.02,
    faults: Sequence[str] = (),
    classes: dict[str, ServiceClass] = PRESETS,
) -> Trial:
    """Return the trial of these requests."""
    seen = records(rate, ttft_s, tpot_s=tpot_s)
    slos = {name: one.slo for name, one in classes.items()}
    summary = summarize(seen, slos, window=(0.0, len(ttft_s) / rate))
    return make_trial(summary, seen, classes, strategy=strategy, rate_rps=rate, seed=0, faults=faults)


def good(rate: float, n: int = 100, *, strategy: str = "slack") -> Trial:
    """Return a trial whose requests take half of their TTFT target."""
    return trial(rate, [0.1] * n, strategy=strategy)


def late(rate: float, share: float, n: int = 100, *, ttft_s: float = 0.3, strategy: str = "slack") -> Trial:
    """Return a trial of which `share` of the requests take `ttft_s` to their first token."""
    spread = [ttft_s if (index * share) % 1.0 + share >= 1.0 - 1e-9 else 0.1 for index in range(n)]
    return trial(rate, spread, strategy=strategy)
