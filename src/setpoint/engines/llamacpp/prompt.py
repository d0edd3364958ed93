"""What a prompt must be before the engine takes it in."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from setpoint.errors import RequestError


def check_prompt(prompt: Sequence[int], most: int, vocabulary: int) -> npt.NDArray[np.intp]:
    """Return the tokens of a prompt as an array of shape (tokens,).

    Raises RequestError when it is empty, leaves no room for an output within `most` tokens, or holds a number that is
    no token of a vocabulary of that size.
    """
    if not prompt:
        raise RequestError("the prompt is empty", hint="send at least one token", param="prompt")
    if len(prompt) >= most:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens, and prompt and output together may have {most}",
            hint="shorten the prompt, or serve with a larger context",
            param="prompt",
            code="context_length_exceeded",
        )
    tokens = np.fromiter(prompt, dtype=np.intp, count=len(prompt))
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise RequestError(
            "the prompt holds a token that the model does not have",
            hint=f"tokens are 0 to {vocabulary - 1}",
            param="prompt",
        )
    return tokens
