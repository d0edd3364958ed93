"""The options of `slack`; no workload should need others than the defaults."""

import msgspec


class SlackOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of `slack`; the defaults are meant for every workload.

    `relegation`: `moore-hodgson`, `own-deadline` or `none`. `rate_blend`: 0 counts waiting work at its bare cost, 1 at
    the rate lately achieved. `chunk_min`: tokens below which a chunk that does not end a prompt does not pay, since a
    step that mixes costs more than its tokens; `batch_chunk_min`: the same for batch work, which takes what is left.
    `pace` (at most, where the tail of the step-time model allows it) and `boldness`: the first values of the margins
    (see `setpoint.core.setpoints`), which stay there unless `is_controlled`. `arrival`: share of the tightest TTFT
    target that a step may last. `idle_step_s`: the longest step when no protected class was seen for `memory_s`.
    `reserve`: share of slots and KV that batch work leaves free. The other `is_...` switches exist so that what a part
    is worth can be measured.
    """

    relegation: str = "moore-hodgson"
    rate_blend: float = 0.5
    chunk_min: int = 64
    batch_chunk_min: int = 16
    pace: float = 0.95
    boldness: float = 0.25
    arrival: float = 0.5
    idle_step_s: float = 0.5
    memory_s: float = 60.0
    reserve: float = 0.1
    is_controlled: bool = True
    is_sized: bool = True
    is_harvesting: bool = True
    is_lending: bool = True
    is_preempting: bool = True
