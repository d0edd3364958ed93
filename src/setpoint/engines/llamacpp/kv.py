"""How the KV cache is cut up among sequences.

`per-slot`: every slot, and every stored prefix, has a stretch of cells of its own, and attention reads no other's. A
sequence can never outgrow what its slot has, so nothing is ever preempted for KV. llama.cpp computes in one go only
sequences whose stretches lie side by side, so that sequences are moved (`packing`); one stretch more than there are
slots makes room for that.

`shared`: one pool of cells, so that any sequence may be as long as the whole pool. Attention of each token then runs
over all cells in use and masks what belongs to others: with 16 sequences of 400 tokens a step takes half as long again,
with 32 of them almost twice as long (on a CPU; `benchmarks/kv_layout.py`). For few, long sequences.
"""

from typing import Final

import msgspec

from setpoint.errors import ConfigError
from setpoint.settings import KvLayout

SEQUENCES_MAX: Final = 256
"""What llama.cpp itself allows (`LLAMA_MAX_SEQ`)."""
BLOCK_TOKENS: Final = 16
"""llama.cpp's cells hold one token each; blocks only keep the ledger of the core short."""
STEP: Final = 256
"""llama.cpp pads the cells of each sequence to a multiple of this."""
CONTEXT_TOKENS: Final = 2048
"""What a slot holds where nothing says otherwise."""
POOL_TOKENS: Final = 16384
"""What a shared pool holds where nothing says otherwise."""


class KvPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of a context. `room_tokens`: what all slots may hold together; `sequence_tokens`: what one may.

    `places`: the KV sequences that the slots share among them.
    """

    layout: KvLayout
    cells: int
    places: int
    room_tokens: int
    sequence_tokens: int
    prefixes: int
    prefix_tokens: int


def plan_kv(
    layout: KvLayout,
    *,
    slots: int,
    kv_tokens: int | None,
    context_tokens: int | None,
    prefixes: int,
    prefix_tokens: int,
) -> KvPlan:
    """Return the cut for `slots` sequences of `context_tokens`, with `kv_tokens` for all of them together.

    Up to `prefixes` stored prefixes come on top, in about `prefix_tokens`: at least one, if both are above 0. A size
    that is `None` follows from the others. Raises ConfigError for sizes that contradict each other.
    """
    if slots < 1 or prefixes < 0 or prefix_tokens < 0:
        raise ConfigError(f"{slots} slots with {prefix_tokens} tokens of KV for {prefixes} prefixes make no engine")
    if not prefixes or not prefix_tokens:
        prefixes = prefix_tokens = 0
    if layout == "shared":
        room = kv_tokens or max(POOL_TOKENS, context_tokens or 0)
        cells = _up(room + prefix_tokens)
        each, places = min(context_tokens or room, room), slots
    else:
        each = _up(context_tokens or CONTEXT_TOKENS) if kv_tokens is None else kv_tokens // slots // STEP * STEP
        if each < max(STEP, context_tokens or 0):
            raise ConfigError(
                f"a KV cache of {kv_tokens} tokens gives each of {slots} slots {each} tokens (cut in steps of {STEP})"
                + (f", and context_tokens is {context_tokens}" if context_tokens else ""),
                hint=f"set kv_tokens to {slots * _up(context_tokens or STEP)} or leave it out, lower the slots, or set "
                "kv_layout to shared",
            )
        prefixes = min(prefixes, max(1, prefix_tokens // each)) if prefixes else 0
        room, prefix_tokens = each * slots, each * prefixes
        places = slots + 1 if 1 < slots < SEQUENCES_MAX - prefixes else slots
        cells, each = each * places + prefix_tokens, min(each, context_tokens or each)
    return KvPlan(
        layout=layout,
        cells=cells,
        places=places,
        room_tokens=room,
        sequence_tokens=each,
        prefixes=prefixes,
        prefix_tokens=prefix_tokens,
    )


def _up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
