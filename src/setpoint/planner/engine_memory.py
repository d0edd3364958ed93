"""Whether a setting can fit at all, from the model's architecture: asked before a start, since a start costs minutes.

Only what cannot be is dropped: weights, and the KV cache where the engine reserves it for every sequence at once. What
an engine sizes by itself (vLLM's cache takes what is left) needs room for one sequence.
"""

import msgspec

from setpoint.planner.knobs import Engine, Setting
from setpoint.steptime.architecture import Architecture

RESERVE_BYTES = 256 * 2**20
"""What any server takes beside weights and cache: buffers, the vocabulary, the program."""
KV_BYTES = 2.0


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of the machine and what the model takes of it; `None` where it could not be told."""

    memory_bytes: float | None
    weight_bytes: float
    architecture: Architecture | None
    context_tokens: int


def why_not(engine: Engine, setting: Setting, room: Room) -> str | None:
    """Return why the setting cannot fit, in words, or `None` when it may."""
    if room.memory_bytes is None or room.architecture is None:
        return None
    chosen = engine.values_of(setting)
    value_bytes = next((k.kv_bytes.get(chosen[k.name], KV_BYTES) for k in engine.knobs if k.kv_bytes), KV_BYTES)
    slots = chosen.get(engine.kv_of or "", "")
    sequences = int(slots) if slots.isdigit() else 1
    cache = sequences * room.architecture.kv_bytes(room.context_tokens, value_bytes)
    needed = room.weight_bytes + cache + RESERVE_BYTES
    if needed <= room.memory_bytes:
        return None
    return (
        f"needs {needed / 2**30:.1f} GiB ({room.weight_bytes / 2**30:.1f} weights, {cache / 2**30:.1f} KV cache of "
        f"{sequences} x {room.context_tokens} tokens), and there are {room.memory_bytes / 2**30:.1f}"
    )
