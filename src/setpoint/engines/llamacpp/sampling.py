"""Drawing the next token, in time that does not grow into the step.

Every request has a `Sampler`. The order is that of vLLM: logit bias and penalties, temperature, min-p, top-k, top-p, so
that a truncation sees the tempered distribution. llama.cpp's own chains copy and partly sort the whole vocabulary for
every token; here everything runs over the logits where llama.cpp left them, in numpy:

- greedy is an argmax;
- a draw from the whole distribution needs no order at all: sums of blocks of 256 weights find the block, a running sum
  within it finds the token;
- truncation sorts little (`truncation`), and for top-p mostly nothing: a token drawn among all is of the nucleus or
  drawn again, which leaves the same distribution.

With a grammar the distribution is that of masking first what it does not allow, then truncating. Where nearly any
character may come, as within a string, and nothing is truncated, a token is drawn first and the grammar asked about it
alone; when it objects, the draw is repeated without that token, which leaves the same distribution, and after a few
times masked. Which way is taken depends on the state of the grammar and not on what happens to be known about it, so
that a seed gives the same tokens whoever else is served.

Log-probabilities are those of the model: before bias, penalties, temperature and truncation.
"""

import math
import random
from typing import Final

import numpy as np

from setpoint.engines.api import Sampling
from setpoint.engines.llamacpp.grammar import Grammar
from setpoint.engines.llamacpp.truncation import Floats, Ids, survivors
from setpoint.errors import EngineError, RequestError
from setpoint.seeds import stream

_BLOCK: Final = 256
_TRIES: Final = 4
"""How many tokens are drawn before the grammar says what it allows, or top-p is cut out."""
_LEAST_NUCLEUS: Final = 0.5
LOGPROBS_MAX: Final = 20
BIASES_MAX: Final = 1024


class Scratch:
    """Memory that all samplers of one executor share: weights of the vocabulary, padded to whole blocks with zeros."""

    def __init__(self, vocabulary: int) -> None:
        """Allocate for `vocabulary` tokens."""
        self.vocabulary = vocabulary
        self._size = -(-vocabulary // _BLOCK) * _BLOCK
        self._padded = np.zeros(self._size, dtype=np.float32)
        self._top = 0.0

    def weights(self, row: Floats, temperature: float) -> Floats:
        """Return `exp((row - max) / temperature)` of up to `vocabulary` logits; valid until the next call."""
        weights = self._padded[: len(row)]
        top = row.max()
        if not math.isfinite(top):
            raise EngineError("the model's logits are not finite numbers", hint="the model file may be damaged")
        self._top = float(top) / temperature
        np.subtract(row, top, out=weights)
        if temperature != 1.0:
            weights *= np.float32(1.0 / temperature)
        self._size = -(-len(row) // _BLOCK) * _BLOCK
        self._padded[len(row) : self._size] = 0.0
        return np.exp(weights, out=weights)

    def log_total(self) -> float:
        """Return the logarithm of the sum of `exp(row / temperature)` of the weights last computed.

        At a temperature of 1 it is what turns a logit into a log-probability.
        """
        return self._top + math.log(float(self._sums().sum(dtype=np.float64)))

    def _sums(self) -> Floats:
        """Return the sum of each block of the weights last computed."""
        sums: Floats = self._padded[: self._size].reshape(-1, _BLOCK).sum(axis=1)
        return sums

    def pick(self, point: float) -> int:
        """Return the token at `point` in [0, 1) of the running sum of the weights last computed."""
        blocks = np.cumsum(self._sums(), dtype=np.float64)
        target = point * blocks[-1]
        block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
        start = block * _BLOCK
        inside = np.cumsum(self._padded[start : start + _BLOCK], dtype=np.float64)
        rest = target - (blocks[block - 1] if block else 0.0)
        index = int(np.searchsorted(inside, rest, side="right"))
        return (
            start + index if index < _BLOCK else start + int(np.flatnonzero(self._padded[start : start + _BLOCK])[-1])
        )


class Sampler:
    """How one request draws its tokens: its randomness, its penalties, its grammar."""

    def __init__(
        self, sampling: Sampling, scratch: Scratch, *, prompt: Ids, ends: Ids, grammar: Grammar | None
    ) -> None:
        """Check `sampling` and keep it; `ends` are the tokens that end a text. Raises RequestError."""
        check_sampling(sampling, scratch.vocabulary)
        self.sampling, self._scratch, self._ends, self._grammar = sampling, scratch, ends, grammar
        self._random = random.Random() if sampling.seed is None else stream(sampling.seed, "sampling")  # noqa: S311
        self._bias_ids = np.fromiter(sampling.logit_bias, dtype=np.intp)
        self._bias = np.fromiter(sampling.logit_bias.values(), dtype=np.float32)
        self._is_output_penalized = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._counts: dict[int, int] = {}
        self._is_repetition_penalized = sampling.repetition_penalty != 1.0
        self._seen = dict.fromkeys(prompt.tolist()) if self._is_repetition_penalized else {}
        self.is_edited = bool(
            len(self._bias)
            or self._is_output_penalized
            or self._is_repetition_penalized
            or grammar
            or sampling.is_eos_ignored
        )
        """Whether `sample` overwrites the logits."""
        is_untruncated = sampling.top_k == 0 and sampling.min_p <= 0.0
        self._is_whole = sampling.temperature == 0.0 or (is_untruncated and sampling.top_p >= 1.0)
        """Whether any token may be drawn, however unlikely: then leaving one out changes no ratio among the others."""
        self._is_nucleus = grammar is None and is_untruncated and _LEAST_NUCLEUS <= sampling.top_p < 1.0
        """Whether most draws among all fall into what top-p leaves."""
        self.is_plain = sampling.temperature == 0.0 and not self.is_edited

    def sample(self, row: Floats) -> int:
        """Return the next token by the logits `row`, overwritten if `is_edited`; -1 when the grammar allows none."""
        if self.is_plain:
            return greedy(row)
        if self.is_edited:
            self._edit(row)
        token = self._draw(row) if self._grammar is None else self._draw_allowed(row, self._grammar)
        if token < 0:
            return token
        if self._is_output_penalized:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._is_repetition_penalized:
            self._seen[token] = None
        return token

    def _edit(self, row: Floats) -> None:
        sampling = self.sampling
        if len(self._bias):
            row[self._bias_ids] += self._bias
        if self._seen:
            ids = np.fromiter(self._seen, dtype=np.intp)
            seen = row[ids]
            factor = np.float32(sampling.repetition_penalty)
            row[ids] = np.where(seen > 0, seen / factor, seen * factor)
        if self._counts:
            ids = np.fromiter(self._counts, dtype=np.intp)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            row[ids] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * counts
        if sampling.is_eos_ignored:
            row[self._ends] = -np.inf

    def _draw_allowed(self, row: Floats, grammar: Grammar) -> int:
        """Return an allowed token, or -1 when there is none."""
        for _ in range(_TRIES if self._is_whole and grammar.is_wide else 0):
            token = self._draw(row)
            if grammar.accept(token):
                return token
            row[token] = -np.inf
        ids, are_allowed = grammar.choice()
        if are_allowed:
            row = row[ids]
        else:
            row[ids] = -np.inf
        if not len(row) or row.max() == -np.inf:
            return -1
        token = self._draw(row)
        token = int(ids[token]) if are_allowed else token
        is_allowed = grammar.accept(token)
        assert is_allowed, "drawn among the allowed"
        return token

    def _draw(self, row: Floats) -> int:
        sampling = self.sampling
        if sampling.temperature == 0.0:
            return greedy(row)
        weights = self._scratch.weights(row, sampling.temperature)
        if self._is_whole:
            return self._scratch.pick(self._random.random())
        if self._is_nucleus:
            token = self._draw_of_nucleus(weights)
            if token is not None:
                return token
        ids = survivors(weights, sampling)
        running = np.cumsum(weights[ids], dtype=np.float64)
        index = int(np.searchsorted(running, self._random.random() * running[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def _draw_of_nucleus(self, weights: Floats) -> int | None:
        """Draw among all, again where the token is not of the nucleus of top-p; `None` where no try came into it.

        That is the same distribution as drawing in the nucleus, and whether one token belongs to it takes no sorting:
        the larger weights, and the equal ones before it, have to come to less than its mass.
        """
        mass = self.sampling.top_p * float(weights.sum())
        for _ in range(_TRIES):
            token = self._scratch.pick(self._random.random())
            weight = weights[token]
            above = float(weights @ (weights > weight).astype(np.float32))
            if above < mass and above + float(weight) * np.count_nonzero(weights[:token] == weight) < mass:
                return token
        return None


def greedy(row: Floats) -> int:
    """Return the token with the largest logit."""
    token = int(row.argmax())
    if not math.isfinite(row[token]):
        raise EngineError("the model's logits are not finite numbers", hint="the model file may be damaged")
    return token


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raise RequestError when a field is outside its range, naming the field."""
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_k", sampling.top_k, 0, math.inf),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0),
        ("presence_penalty", sampling.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", sampling.frequency_penalty, -100.0, 100.0),
        ("logprobs", sampling.logprobs or 0, 0, LOGPROBS_MAX),
    )
    for name, value, least, most in ranges:
        if not least <= value <= most:
            raise RequestError(f"{name} is {value}, not between {least} and {most}", param=name)
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise RequestError("a request follows a grammar or a JSON schema, not both", param="grammar")
    if len(sampling.logit_bias) > BIASES_MAX:
        raise RequestError(f"logit_bias names more than {BIASES_MAX} tokens", param="logit_bias")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary or not -100.0 <= bias <= 100.0:  # noqa: PLR2004 - OpenAI's bounds
            raise RequestError(
                f"logit_bias gives token {token} the bias {bias}",
                hint=f"tokens are 0 to {vocabulary - 1}, biases -100 to 100",
                param="logit_bias",
            )
