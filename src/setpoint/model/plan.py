"""The step plan: what the next forward pass computes, and why it is no larger."""

from typing import Literal

import msgspec

from setpoint.units import Instant, Seconds

Bound = Literal["work", "slots", "kv", "tokens", "slack", "loan", "harvest"]
"""What kept a step from being larger: nothing was left to do (`work`), no slot or no KV block was free, the token
budget was spent, the slack of a protected sequence would have been overrun, it was overrun for one prompt and no other
(`loan`), or the cap on steps of pure batch work."""


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """What bound a step: the kind, and the sequence at whose expense a larger one would have been.

    Of a `loan` it is the sequence that got it.
    """

    kind: Bound
    request_id: int | None = None


class Horizon(msgspec.Struct, frozen=True, array_like=True):
    """Until when the same decision would be taken again, as long as no event but `StepFinished` comes.

    The plan may be run `steps` times over, and step number i (the first is 0) may begin without asking again as long as
    it begins at or before `start of the plan + i x pace_s` (when given) and before `until_at` (when given).
    """

    steps: int
    pace_s: Seconds | None = None
    until_at: Instant | None = None


class StepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One forward pass.

    `decodes`: ids of the sequences that get one token each. `prefills`: (id, tokens) of the prompt chunks; a sequence
    whose last chunk this is also yields its first token. `predicted_s`: the step time that the model expects, with
    `cap_s` the time that it was allowed (`None`: no time limit).
    """

    step_id: int
    decodes: tuple[int, ...] = ()
    prefills: tuple[tuple[int, int], ...] = ()
    predicted_s: Seconds = Seconds(0.0)
    cap_s: Seconds | None = None
    bound_by: Binding = Binding("work")
    horizon: Horizon = Horizon(1)

    @property
    def tokens(self) -> int:
        """The tokens that the pass computes."""
        return len(self.decodes) + sum(tokens for _, tokens in self.prefills)
