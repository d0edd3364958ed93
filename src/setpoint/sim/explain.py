"""Why a request was late, told from a journal: what it waited for, behind whom, and what bound the steps meanwhile.

Nothing is run again. The events and commands of a replica machine say all: who was admitted, which step computed whose
tokens, how long each took and what kept it from being larger. A request's life falls into waiting (no slot), prefill,
and decoding; taken back, it waits again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from setpoint.model import (
    Admit,
    AnyCommand,
    AnyEvent,
    Arrived,
    Finish,
    Preempt,
    Reject,
    Relegate,
    Request,
    RunStep,
    ServiceClass,
    StepFinished,
    StepPlan,
)

Phase = Literal["waiting", "prefill", "decoding"]
_NAMED = 3
_COUNTED_S = 10.0
_BOUND_WORDS = {
    "work": "nothing more was to be done",
    "slots": "all slots were taken",
    "kv": "the KV cache was full",
    "tokens": "the token budget was spent",
    "slack": "a running answer would have fallen behind its pace",
    "loan": "a prompt was taken in at the expense of running answers, which had time to catch up",
    "harvest": "batch work had reached its limit",
}


class Spell(msgspec.Struct, kw_only=True):
    """A time that a request spent in one phase, with the steps that ran meanwhile.

    `steps_s`: seconds of steps by what bound them. `own_tokens`: of this request; `others`: prompt tokens of others by
    id. `own_steps`: steps that computed something for it. `blockers`: sequences that bound steps by their slack.
    """

    phase: Phase
    start_at: float
    end_at: float = 0.0
    steps: int = 0
    own_steps: int = 0
    own_tokens: int = 0
    decodes: int = 0
    steps_s: dict[str, float] = msgspec.field(default_factory=dict)
    others: dict[int, int] = msgspec.field(default_factory=dict)
    blockers: dict[int, int] = msgspec.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end_at - self.start_at


class Story(msgspec.Struct, kw_only=True):
    """The life of one request; `outcome` is how it ended (`None`: not within the journal)."""

    request: Request
    class_name: str
    spells: list[Spell]
    first_token_at: float | None = None
    ended_at: float | None = None
    output_tokens: int = 0
    outcome: str | None = None
    relegated_at: list[float] = msgspec.field(default_factory=list)
    preempted_at: list[float] = msgspec.field(default_factory=list)
    ahead: int = 0
    """Requests that stood there, waiting or running, when it came."""

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first token."""
        return None if self.first_token_at is None else self.first_token_at - self.request.arrived_at

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first."""
        if self.ended_at is None or self.first_token_at is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.ended_at - self.first_token_at) / (self.output_tokens - 1)


class _Reader:
    """Follows one request through the lines."""

    def __init__(self, request_id: int) -> None:
        self.id = request_id
        self.story: Story | None = None
        self._open: set[int] = set()
        self._plan: StepPlan | None = None
        self._left = 0

    def read(self, event: AnyEvent, commands: Iterable[AnyCommand]) -> bool:
        """Take in one line; return whether the request has ended."""
        if isinstance(event, Arrived):
            self._arrived(event)
        elif isinstance(event, StepFinished) and self._plan is not None:
            self._step(event, self._plan)
            self._plan = None
        for command in commands:
            if isinstance(command, RunStep):
                self._plan = command.plan
            elif isinstance(command, Finish | Reject):
                self._open.discard(command.request_id)
            if self.story is not None and getattr(command, "request_id", None) == self.id:
                self._own(self.story, command, event.at)
        return self.story is not None and self.story.outcome is not None

    def _arrived(self, event: Arrived) -> None:
        request = event.request
        if request.id == self.id:
            self.story = Story(request=request, class_name=request.class_name, spells=[], ahead=len(self._open))
            self._left = request.prompt_tokens - request.cached_tokens - request.received_tokens
            self._begin("waiting", event.at)
        self._open.add(request.id)

    def _begin(self, phase: Phase, at: float) -> None:
        assert self.story is not None
        if self.story.spells:
            self.story.spells[-1].end_at = at
        self.story.spells.append(Spell(phase=phase, start_at=at, end_at=at))

    def _own(self, story: Story, command: AnyCommand, at: float) -> None:
        if isinstance(command, Admit):
            self._begin("prefill", at)
        elif isinstance(command, Relegate) and command.is_relegated:
            story.relegated_at.append(at)
        elif isinstance(command, Preempt):
            story.preempted_at.append(at)
            self._left = story.request.prompt_tokens + story.output_tokens
            self._begin("waiting", at)
        elif isinstance(command, Finish | Reject):
            story.spells[-1].end_at = story.ended_at = at
            story.outcome = command.reason

    def _step(self, event: StepFinished, plan: StepPlan) -> None:
        story = self.story
        if story is None or story.outcome is not None:
            return
        spell = story.spells[-1]
        repeats = len(event.step_seconds)
        bound = plan.bound_by
        spell.steps += repeats
        spell.decodes += repeats * len(plan.decodes)
        spell.steps_s[bound.kind] = spell.steps_s.get(bound.kind, 0.0) + sum(event.step_seconds)
        if bound.kind == "slack" and bound.request_id is not None:
            spell.blockers[bound.request_id] = spell.blockers.get(bound.request_id, 0) + repeats
        own = 0
        for request_id, tokens in plan.prefills:
            if request_id == self.id:
                own = tokens
            else:
                spell.others[request_id] = spell.others.get(request_id, 0) + tokens
        if self.id in plan.decodes:
            spell.own_steps += repeats
            story.output_tokens += repeats
        elif own:
            self._prefilled(story, spell, own, event.at)
        spell.end_at = event.at

    def _prefilled(self, story: Story, spell: Spell, tokens: int, at: float) -> None:
        spell.own_steps += 1
        spell.own_tokens += tokens
        self._left -= tokens
        if self._left <= 0:
            story.output_tokens += 1
            if story.first_token_at is None:
                story.first_token_at = at
            self._begin("decoding", at)


def read_story(lines: Iterable[tuple[AnyEvent, Iterable[AnyCommand]]], request_id: int) -> Story | None:
    """Return what the lines say of the request, or `None` when it does not occur in them."""
    reader = _Reader(request_id)
    for event, commands in lines:
        if reader.read(event, commands):
            break
    return reader.story


def tell(story: Story, classes: Mapping[str, ServiceClass]) -> list[str]:
    """Return the story in sentences, the verdict first."""
    request = story.request
    words = [
        f"request {request.id} ({story.class_name}): {request.prompt_tokens:,} prompt tokens"
        + (f", {request.cached_tokens:,} of them cached" if request.cached_tokens else "")
        + f", came at {request.arrived_at:.3f} s when {story.ahead} others were there"
    ]
    service_class = classes.get(story.class_name)
    if service_class is not None:
        words += _verdict(story, service_class)
    words += [sentence for spell in story.spells if spell.steps or spell.seconds > 0.0 for sentence in _spell(spell)]
    if story.relegated_at:
        words.append(
            f"given up at {story.relegated_at[0]:.3f} s: it could not be in time, or others could only without it"
        )
    if story.preempted_at:
        words.append(f"taken back {len(story.preempted_at)} time(s): its KV was computed anew each time")
    words.append("it had not ended when the journal did" if story.outcome is None else f"it ended: {story.outcome}")
    return words


def _verdict(story: Story, service_class: ServiceClass) -> list[str]:
    slo = story.request.slo(service_class)
    target = slo.ttft_target(story.request.prompt_tokens)
    words = []
    if target is not None and story.ttft_s is not None:
        words.append(f"its first token took {_against(story.ttft_s, target)}")
    elif target is not None:
        words.append(f"its first token never came (target {_duration(target)})")
    if slo.tpot_s is not None and story.tpot_s is not None:
        words.append(f"each further token took {_against(story.tpot_s, slo.tpot_s)}")
    if slo.e2e_s is not None and story.ended_at is not None:
        words.append(f"the whole took {_against(story.ended_at - story.request.arrived_at, slo.e2e_s)}")
    return words


def _against(value: float, target: float) -> str:
    state = "in time" if value <= target else f"{_duration(value - target)} late"
    return f"{_duration(value)} (target {_duration(target)}): {state}"


def _duration(seconds: float) -> str:
    """Return a duration in milliseconds, or in seconds where a person would count those."""
    if seconds >= _COUNTED_S:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1e3:,.1f} ms"


def _spell(spell: Spell) -> list[str]:
    """Return what is to be said of one spell."""
    mean = 1e3 * sum(spell.steps_s.values()) / max(1, spell.steps)
    beside = spell.decodes / max(1, spell.steps)
    lead = {"waiting": "it waited", "prefill": "its prompt was computed for", "decoding": "it decoded for"}[spell.phase]
    words = [
        f"{lead} {_duration(spell.seconds)}: {spell.steps} {'step' if spell.steps == 1 else 'steps'} of {mean:.1f} ms "
        f"with {beside:.0f} decodes each"
        + (f", {spell.own_tokens:,} tokens of its own in {spell.own_steps} of them" if spell.own_tokens else "")
        + (f", {spell.own_steps} of them with it" if spell.phase == "decoding" else "")
    ]
    if spell.others:
        ranked = Counter(spell.others).most_common(_NAMED)
        named = ", ".join(f"{request_id} ({tokens:,} tokens)" for request_id, tokens in ranked)
        more = f" and {len(spell.others) - _NAMED} more" if len(spell.others) > _NAMED else ""
        words.append(f"  beside prompts of {named}{more}")
    whole = sum(spell.steps_s.values())
    for kind, seconds in sorted(spell.steps_s.items(), key=lambda item: -item[1]):
        whose = Counter(spell.blockers).most_common(1) if kind == "slack" else []
        of = f" (most often {whose[0][0]})" if whose else ""
        words.append(f"  {seconds / whole:.0%} of that time: {_BOUND_WORDS.get(kind, kind)}{of}")
    return words
