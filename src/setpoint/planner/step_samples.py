"""Step times read off streams of tokens: what an engine does inside, seen by a client that dates every event.

An engine that batches continuously gives each decoding sequence one token a step, so that the gaps of a stream are the
seconds of steps. Two kinds of span are told apart:

*Pure decoding.* While the same n streams decode and no prompt is computed, each gap of each stream is one step of n
decodes; the median over streams and gaps is the sample, so that the client's own jitter falls out.

*A prompt beside others.* While n streams decode, a prompt of p tokens that was sent in that time is computed in the k
steps between the first token that another stream shows after the send and its own first token. Their mean is the
sample: a step of n decodes with p / k prompt tokens. The streams that go on are the clock, so that neither the wait for
the step in flight nor how the engine cuts prompts need be known. Without other streams the first token dates all: such
*lone* prompts tell what a request spends outside of steps, once the steps are known.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

import msgspec

from setpoint.metrics import RequestRecord
from setpoint.model import StepShape, StepTime
from setpoint.steptime.model import Sample
from setpoint.units import Seconds

PART_TOKENS = 16
"""A sample of pure decoding covers about so many steps: the context grows meanwhile."""

_EDGE_TOKENS = 2
_GAPS_MIN = 3
_LONGER = 1.6


class Seen(msgspec.Struct, kw_only=True):
    """What streams told.

    `samples`: shapes with median seconds. `gaps`: single steps of pure decoding, which show the scatter. `lone`:
    (prompt tokens, seconds from send to first token). `decodes_max`, `chunk_max`: the most that was seen in one step.
    """

    samples: list[Sample] = []
    gaps: list[Sample] = []
    lone: list[tuple[int, float]] = []
    decodes_max: int = 0
    chunk_max: int = 0

    def add(self, other: "Seen") -> None:
        """Take in what another load told."""
        self.samples += other.samples
        self.gaps += other.gaps
        self.lone += other.lone
        self.decodes_max = max(self.decodes_max, other.decodes_max)
        self.chunk_max = max(self.chunk_max, other.chunk_max)


class _Stream:
    """One answered request: when it was sent, and its tokens."""

    def __init__(self, record: RequestRecord) -> None:
        assert record.sent_at is not None
        self.sent_at = record.sent_at
        self.at = record.event_at
        self.prompt_tokens = record.prompt_tokens

    @property
    def first_at(self) -> float:
        return self.at[0]

    @property
    def last_at(self) -> float:
        return self.at[-1]

    def context(self, at: float) -> int:
        """Return the tokens that it holds at an instant."""
        return self.prompt_tokens + sum(1 for one in self.at if one <= at)


def streams_of(records: Iterable[RequestRecord]) -> list[_Stream]:
    """Return the streams that can be read: answered, dated, one token an event."""
    return [
        _Stream(record)
        for record in records
        if not record.is_failed and record.event_at and record.sent_at is not None and record.is_one_token_an_event
    ]


def read_decoding(records: Iterable[RequestRecord]) -> Seen:
    """Return the samples of pure decoding of requests that came together, while all of them decode."""
    streams = streams_of(records)
    seen = Seen()
    if not streams:
        return seen
    start = max(s.at[min(_EDGE_TOKENS, len(s.at) - 1)] for s in streams)
    end = min(s.last_at for s in streams)
    count = len(streams)
    gaps = sorted((b, b - a) for s in streams for a, b in pairwise(s.at) if a >= start and b <= end)
    if len(gaps) < _GAPS_MIN * count:
        return seen
    seen.decodes_max = count
    parts = max(1, round(len(gaps) / count / PART_TOKENS))
    for part in range(parts):
        chosen = gaps[part * len(gaps) // parts : (part + 1) * len(gaps) // parts]
        middle = chosen[len(chosen) // 2][0]
        shape = StepShape(count, sum(s.context(middle) for s in streams))
        seen.samples.append((shape, _positive(median(gap for _, gap in chosen))))
        seen.gaps += [(shape, _positive(gap)) for _, gap in chosen]
    return seen


def read_prompts(records: Iterable[RequestRecord], clocks: int) -> Seen:
    """Return the samples of prompts that were computed beside `clocks` streams, those with the most tokens.

    Without `clocks` each prompt was alone, and its time to the first token is kept as it is.
    """
    streams = sorted(streams_of(records), key=lambda s: -len(s.at))
    if not clocks:
        return Seen(lone=[(s.prompt_tokens, s.first_at - s.sent_at) for s in streams])
    beside, probes = streams[:clocks], streams[clocks:]
    seen = Seen()
    for probe in probes:
        sample = _beside(probe, beside, probes)
        if sample is not None:
            seen.samples.append(sample)
            seen.chunk_max = max(seen.chunk_max, sample[0].prefill_tokens, _chunk(probe, beside[0]))
            seen.decodes_max = max(seen.decodes_max, clocks + 1)
    return seen


def _beside(probe: _Stream, beside: Sequence[_Stream], probes: Sequence[_Stream]) -> Sample | None:
    """Return the mean step of a prompt, or `None` where the streams beside it did not all go on from send to token."""
    first_at = probe.first_at
    if not all(s.first_at < probe.sent_at and s.last_at >= first_at for s in beside):
        return None
    if any(p is not probe and p.sent_at < first_at and p.last_at > probe.sent_at for p in probes):
        return None
    marks = [_between(s, probe.sent_at, first_at) for s in beside]
    marks = [(start, steps) for start, steps in marks if steps]
    if not marks:
        return None
    start = median(one for one, _ in marks)
    steps = max(1, round(median(count for _, count in marks)))
    decodes = len(beside)
    chunk = max(1, round(probe.prompt_tokens / steps))
    shape = StepShape(
        decodes,
        sum(s.context(0.5 * (start + first_at)) for s in beside),
        chunk,
        0.5 * probe.prompt_tokens**2 / steps,
        1,
    )
    return shape, _positive((first_at - start) / steps)


def _chunk(probe: _Stream, clock: _Stream) -> int:
    """Return the prompt tokens of one step, by how many steps were clearly longer than those without a prompt."""
    gaps = sorted(b - a for a, b in pairwise(clock.at))
    plain = gaps[len(gaps) // 4]
    inside = [b - a for a, b in pairwise(clock.at) if b > probe.sent_at and a < probe.first_at - 0.5 * plain]
    longer = sum(gap > _LONGER * plain for gap in inside)
    return round(probe.prompt_tokens / longer) if longer else 0


def _between(clock: _Stream, sent_at: float, first_at: float) -> tuple[float, int]:
    """Return the first token of a stream after the send, and how many more came until the first token, inclusive.

    The token of the very step that brought the first token may be dated a little later: half a gap is allowed.
    """
    after = [at for at in clock.at if at >= sent_at]
    if not after or after[0] >= first_at:
        return first_at, 0
    gaps = [b - a for a, b in pairwise(clock.at)]
    tolerance = 0.5 * median(gaps)
    return after[0], sum(1 for at in after[1:] if at <= first_at + tolerance)


def outside_s(lone: Sequence[tuple[int, float]], step_time: StepTime, chunk_tokens: int) -> float:
    """Return what a request spends outside of steps: the median of what its lone prompt took beyond its steps."""
    return max(0.0, median(seconds - _steps_s(tokens, step_time, chunk_tokens) for tokens, seconds in lone))


def _steps_s(tokens: int, step_time: StepTime, chunk_tokens: int) -> float:
    total, done = 0.0, 0
    while done < tokens:
        chunk = min(tokens - done, max(1, chunk_tokens))
        total += step_time.seconds(0, 0, chunk, chunk * (done + 0.5 * chunk), 1)
        done += chunk
    return total


def _positive(seconds: float) -> Seconds:
    return Seconds(max(seconds, 1e-6))
