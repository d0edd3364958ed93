"""What an engine can hold and compute at once; the core is told, it never assumes."""

import msgspec

from setpoint.units import Blocks, Tokens


class Capacity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one replica.

    `slots`: sequences that may hold KV at once. `kv_blocks` of `block_tokens` tokens each: the KV cache.
    `step_tokens_max`: tokens that one forward pass accepts. `context_tokens_max`: prompt and output of one sequence.
    """

    slots: int
    kv_blocks: Blocks
    block_tokens: Tokens
    step_tokens_max: Tokens
    context_tokens_max: Tokens

    def blocks(self, tokens: int) -> int:
        """Return how many KV blocks hold `tokens`, rounded up."""
        return -(-tokens // self.block_tokens)
