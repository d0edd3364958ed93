"""What is to be asked and when: a plan is a list of these, in order of time, made before the first request is sent.

A plan says nothing of an engine. The measuring client sends it, the simulator serves it, and both see the same numbers.
"""

import msgspec


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request due `at_s` seconds after the start of the run.

    `prefix_tokens` leading tokens are the same in all requests with the same `prefix_id`. `prefix_blocks`: ids of the
    leading blocks of `block_tokens` tokens each; equal leading ids mean a shared prefix (Mooncake's form). A turn of a
    conversation names its `session` and is due `think_s` after turn `turn - 1` ended, and not before `at_s`; its prompt
    tokens include the history. `text`: the user's own prompt; otherwise one of `prompt_tokens` is made up.
    """

    id: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str = "standard"
    prefix_id: int | None = None
    prefix_tokens: int = 0
    prefix_blocks: tuple[int, ...] = ()
    block_tokens: int = 512
    session: int | None = None
    turn: int = 0
    think_s: float = 0.0
    text: str | None = None
