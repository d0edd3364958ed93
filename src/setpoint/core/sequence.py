"""One request on one replica: what is computed of it, what it holds, and when its tokens are due.

All sequences in decode usually advance together, one token a step. So that a step need not touch each of them, they
share a counter of such steps: what a sequence has is what is written beside its name plus the steps counted so far.
"""

from setpoint.model import Request, ServiceClass, Slo
from setpoint.units import NEVER, Instant

Key = tuple[float, ...]


class Rounds:
    """Steps that a group of sequences advanced together, one token each."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        """Begin at 0."""
        self.count = 0


_STILL = Rounds()
"""The counter of those that are not in decode: it stands at 0."""


class Sequence:
    """The token state of one request; mutable, and written by the ledger and the machine alone."""

    __slots__ = (
        "anchor",
        "arrived_at",
        "base_computed",
        "base_output",
        "batch_before_s",
        "blocks",
        "cached_tokens",
        "due_at",
        "expires_at",
        "first_token_at",
        "id",
        "is_harvest",
        "is_late",
        "key",
        "output_tokens_max",
        "preemptions",
        "prompt_tokens",
        "request",
        "rounds",
        "service_class",
        "slo",
        "slot",
        "target_tokens",
        "ttft_deadline",
    )

    def __init__(self, request: Request, service_class: ServiceClass) -> None:
        """Take the request in: nothing computed, nothing held."""
        slo = request.slo(service_class)
        self.request = request
        self.id = request.id
        self.service_class = service_class
        self.slo: Slo = slo
        self.is_harvest = service_class.is_harvest
        self.arrived_at = request.arrived_at
        self.prompt_tokens: int = request.prompt_tokens
        self.output_tokens_max: int = request.output_tokens_max
        self.cached_tokens: int = request.cached_tokens
        self.rounds = _STILL
        self.base_computed: int = self.cached_tokens + request.received_tokens
        self.base_output = 0
        """Tokens computed and yielded, less the rounds."""
        self.batch_before_s = 0.0
        """What batch work had added to all steps when it arrived."""
        self.target_tokens: int = self.prompt_tokens
        self.blocks = 0
        self.slot: int | None = None
        self.first_token_at: Instant | None = None
        self.anchor: float = request.arrived_at
        """The instant from which the deadlines of the tokens after the first count; see `begin`."""
        self.preemptions = 0
        self.is_late = False
        self.key: Key = ()
        target = slo.ttft_target(request.prompt_tokens)
        self.ttft_deadline: float | None = None if target is None else request.arrived_at + target
        self.due_at: float = NEVER
        """When the first token (or, of batch work, the last) is due; infinity where nothing is."""
        if self.ttft_deadline is not None:
            self.due_at = self.ttft_deadline
        elif slo.e2e_s is not None:
            self.due_at = request.arrived_at + slo.e2e_s
        wait_s = service_class.wait_max_s
        if wait_s is None:
            wait_s = slo.e2e_s
        self.expires_at: float | None = None if wait_s is None else request.arrived_at + wait_s
        """When it has waited for its first token as long as it may; `None`: it waits for none, or for ever."""

    @property
    def computed_tokens(self) -> int:
        """Tokens of which the KV is there."""
        return self.base_computed + self.rounds.count

    @computed_tokens.setter
    def computed_tokens(self, tokens: int) -> None:
        self.base_computed = tokens - self.rounds.count

    @property
    def output_tokens(self) -> int:
        """Tokens yielded."""
        return self.base_output + self.rounds.count

    @output_tokens.setter
    def output_tokens(self, tokens: int) -> None:
        self.base_output = tokens - self.rounds.count

    def advance_with(self, rounds: Rounds | None) -> None:
        """Gain a token in each of `rounds` from now on; `None`: stand still."""
        joined = _STILL if rounds is None else rounds
        gained = self.rounds.count - joined.count
        self.base_computed += gained
        self.base_output += gained
        self.rounds = joined

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to be computed before the next one is yielded."""
        return self.target_tokens - self.computed_tokens

    def begin(self, at: Instant) -> None:
        """Note when the first token came."""
        self.first_token_at = at
        self.expires_at = None
        is_early = self.slo.judged_by == "pace" and self.ttft_deadline is not None and self.ttft_deadline > at
        self.anchor = self.ttft_deadline if is_early and self.ttft_deadline is not None else at

    @property
    def is_missed(self) -> bool:
        """Whether its first token came too late: then it cannot attain its SLO any more, whatever follows."""
        due, at = self.ttft_deadline, self.first_token_at
        return due is not None and at is not None and at > due

    def token_deadline(self) -> float | None:
        """Return when the next token after the first is due, or `None`; see `setpoint.model.decode_deadline`."""
        tpot_s = self.slo.tpot_s
        return None if tpot_s is None or self.first_token_at is None else self.anchor + self.output_tokens * tpot_s

    def catches_up(self, slack_s: float, own_s: float) -> bool:
        """Return whether a decode with `slack_s` left can still attain its TPOT target, if steps take `own_s`."""
        tpot_s = self.slo.tpot_s
        assert tpot_s is not None
        left = self.output_tokens_max - self.output_tokens
        return own_s - slack_s <= left * max(0.0, tpot_s - own_s)
