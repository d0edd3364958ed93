"""The executor of the embedded engine: step plans in, tokens out, over one llama.cpp context.

A step plan becomes one `llama_decode`: one token of each decode and the prompt chunks, each token labelled with the KV
sequence and the position that it belongs to, in the order of the sequences (`kv` says why). Logits are computed only
for the tokens that are sampled from: every decode, and the last token of a prompt. The executor decides nothing; that
the plan fits is the core's duty, and a plan that does not is a bug and fails an assertion.

*Preemption* frees the KV and keeps the tokens. Prompt and output so far then form the prompt that is prefilled again,
in chunks as the plan says, and its last chunk yields the next new token; the state of the sampler (randomness,
penalties, grammar) is kept, so that the output goes on as if nothing had happened. A shared prefix is not used again
then.

*KV sequences* and slots are different numbers: where each sequence has cells of its own, it is moved so that those
decoded together are neighbours (`packing`). *Prefixes* live in KV sequences above those of the slots, in cells that the
reported capacity leaves out (`prefix`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from setpoint.engines.api import Generation, SampledToken, StepOutput, TokenLogprob
from setpoint.engines.llamacpp.context import Context, physical_cores
from setpoint.engines.llamacpp.grammar import compile_grammar
from setpoint.engines.llamacpp.kv import BLOCK_TOKENS, plan_kv
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.packing import Packing
from setpoint.engines.llamacpp.prefix import PrefixStats, PrefixStore, StoredPrefix
from setpoint.engines.llamacpp.prompt import check_prompt
from setpoint.engines.llamacpp.sampling import Sampler, Scratch
from setpoint.engines.llamacpp.truncation import Floats, likeliest
from setpoint.errors import EngineError
from setpoint.model import Capacity
from setpoint.settings import KvLayout
from setpoint.units import Blocks, Seconds, Tokens


@dataclass
class _Sequence:
    """The token state of one request; `tokens` are prompt and output, the first `computed` of which have KV."""

    generation: Generation
    tokens: list[int]
    sampler: Sampler
    prefix: StoredPrefix | None
    prefix_tokens: int
    stored_tokens: int
    place: int | None = None
    """The number of its KV sequence, while it has a slot."""
    computed: int = 0

    @property
    def held_place(self) -> int:
        """The place, which it must have."""
        assert self.place is not None, "the sequence has no slot"
        return self.place


class LlamaExecutor:
    """Implements `setpoint.engines.api.Executor`. Called from one thread; `llama_decode` runs without the GIL."""

    def __init__(  # noqa: PLR0913 - the knobs of an engine
        self,
        model: Model,
        *,
        slots: int = 16,
        kv_layout: KvLayout = "per-slot",
        kv_tokens: int | None = None,
        step_tokens_max: int = 512,
        context_tokens_max: int | None = None,
        threads: int | None = None,
        prefixes: int = 8,
        prefix_tokens: int = 4096,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Make an engine of `slots` sequences over `kv_tokens` of KV, of which `prefix_tokens` are for prefixes.

        `kv_layout` and the sizes that are `None`: see `kv`. `threads` defaults to the physical cores. No sequence may
        be longer than what the model was trained on. Raises ConfigError for sizes that contradict each other,
        ModelError when memory does not suffice.
        """
        trained = model.info.context_tokens
        self.kv = kv = plan_kv(
            kv_layout,
            slots=slots,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens_max,
            prefixes=prefixes if model.is_prefix_sharable else 0,
            prefix_tokens=prefix_tokens,
        )
        self.model, self._clock = model, clock
        self.threads = threads or physical_cores()
        self._context = Context(
            model,
            cells=kv.cells,
            sequences=kv.places + kv.prefixes,
            step_tokens_max=step_tokens_max,
            threads=self.threads,
            is_shared=kv.layout == "shared",
        )
        self._capacity = Capacity(
            slots=slots,
            kv_blocks=Blocks(kv.room_tokens // BLOCK_TOKENS),
            block_tokens=Tokens(BLOCK_TOKENS),
            step_tokens_max=Tokens(step_tokens_max),
            context_tokens_max=Tokens(min(kv.sequence_tokens, trained)),
        )
        self._packing = Packing(kv.places)
        self._is_packed = kv.layout == "per-slot" and model.is_prefix_sharable
        self._prefixes = PrefixStore(range(kv.places, kv.places + kv.prefixes), kv.prefix_tokens, BLOCK_TOKENS)
        self._scratch = Scratch(model.info.vocabulary)
        self._ends = np.fromiter(model.end_tokens, dtype=np.intp)
        self._sequences: dict[int, _Sequence] = {}

    @property
    def capacity(self) -> Capacity:
        """What the engine can hold and compute; the cells kept for prefixes are not in it."""
        return self._capacity

    @property
    def prefix_stats(self) -> PrefixStats:
        """What sharing prefixes has saved so far."""
        return self._prefixes.stats()

    def close(self) -> None:
        """Release every request and free the KV cache."""
        for request_id in list(self._sequences):
            self.release(request_id)
        self._context.close()

    def prepare(self, request_id: int, generation: Generation) -> int:
        """Take a request in before it waits; return how many prompt tokens a stored prefix saves (it stays pinned).

        Raises RequestError when the request is malformed: an empty or too long prompt, a token that is none, sampling
        out of range, a grammar or schema that cannot be compiled.
        """
        assert request_id not in self._sequences, f"request {request_id} is known already"
        prompt = check_prompt(generation.prompt, self._capacity.context_tokens_max, self.model.info.vocabulary)
        sampling = generation.sampling
        grammar = compile_grammar(self.model, grammar=sampling.grammar, json_schema=sampling.json_schema)
        sampler = Sampler(sampling, self._scratch, prompt=prompt, ends=self._ends, grammar=grammar)
        tokens32 = prompt.astype(np.int32)
        pinned = self._prefixes.pin(tokens32)
        self._sequences[request_id] = _Sequence(
            generation=generation,
            tokens=list(generation.prompt),
            sampler=sampler,
            prefix=pinned[0] if pinned else None,
            prefix_tokens=pinned[1] if pinned else 0,
            stored_tokens=min(max(generation.prefix_tokens, self._prefixes.seen_before(tokens32)), len(prompt)),
        )
        return self._sequences[request_id].prefix_tokens

    def admit(self, request_id: int, slot: int) -> None:
        """Bind the request to the slot and share its stored prefix, which is then unpinned."""
        sequence = self._sequences[request_id]
        assert sequence.place is None, f"request {request_id} has a slot already"
        assert 0 <= slot < self._capacity.slots, f"there is no slot {slot}"
        place = self._packing.take()
        assert self._context.length(place) == 0, f"what was in place {place} is still there"
        sequence.place, sequence.computed = place, 0
        if sequence.prefix is not None:
            self._context.copy(sequence.prefix.sequence, place, sequence.prefix_tokens)
            sequence.computed = sequence.prefix_tokens
            self._prefixes.count_hit(sequence.prefix_tokens)
            self._unpin(sequence)

    def run(self, decodes: Sequence[int], prefills: Sequence[tuple[int, int]]) -> StepOutput:
        """Run one forward pass and sample; see `Executor.run`.

        Raises EngineError when the pass fails: then no sequence has moved, and the step may be tried again.
        """
        started = self._clock()
        known = self._sequences
        assert all(known[i].computed == len(known[i].tokens) - 1 for i in decodes), "a decode has not been prefilled"
        if self._is_packed:
            self._pack(decodes)
        chunks = sorted(
            [(known[i].held_place, i, 1) for i in decodes] + [(known[i].held_place, i, n) for i, n in prefills]
        )
        sampled = self._fill(chunks)
        try:
            self._context.decode(sum(tokens for _, _, tokens in chunks))
        except EngineError:
            for place, request_id, _ in chunks:
                self._context.drop(place, known[request_id].computed)
            raise
        for _, request_id, tokens in chunks:
            known[request_id].computed += tokens
        forwarded = self._clock()
        rows = self._context.logits(len(sampled)) if sampled else ()
        output = tuple(self._sample(request_id, row) for request_id, row in zip(sampled, rows, strict=True))
        return StepOutput(
            tokens=output, forward_s=Seconds(forwarded - started), sampling_s=Seconds(self._clock() - forwarded)
        )

    def preempt(self, request_id: int) -> None:
        """Free the slot and the KV of the request, and keep its tokens: its next prefill recomputes them all."""
        sequence = self._sequences[request_id]
        self._leave(sequence)
        sequence.computed = 0

    def release(self, request_id: int) -> None:
        """Forget the request and free all that it holds; at any point of its life."""
        sequence = self._sequences.pop(request_id)
        if sequence.place is not None:
            self._leave(sequence)
        self._unpin(sequence)

    def _leave(self, sequence: _Sequence) -> None:
        self._context.drop(sequence.held_place)
        self._packing.give_back(sequence.held_place)
        sequence.place = None

    def _pack(self, decodes: Sequence[int]) -> None:
        """Move a sequence or two where that saves passes in this step and in those like it."""
        places = sorted(self._sequences[i].held_place for i in decodes)
        for source, target in self._packing.moves(places):
            self._context.move(source, target)
            moved = next(s for s in self._sequences.values() if s.place == source)
            moved.place = target

    def _fill(self, chunks: list[tuple[int, int, int]]) -> list[int]:
        """Write the batch of (place, request, tokens); return the requests that are sampled from, in its order."""
        context, sampled = self._context, []
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        for place, request_id, count in chunks:
            sequence = self._sequences[request_id]
            start, end = sequence.computed, sequence.computed + count
            assert count > 0, "a chunk is empty"
            assert end <= len(sequence.tokens), "a chunk goes beyond its prompt"
            tokens += sequence.tokens[start:end]
            positions += range(start, end)
            places += [place] * count
            context.is_output[len(tokens) - count : len(tokens)] = 0
            if end == len(sequence.tokens):
                context.is_output[len(tokens) - 1] = 1
                sampled.append(request_id)
        size = len(tokens)
        assert 0 < size <= len(context.token), "the plan is empty, or larger than a step may be"
        context.token[:size], context.position[:size], context.sequence[:size] = tokens, positions, places
        return sampled

    def _sample(self, request_id: int, row: Floats) -> SampledToken:
        sequence = self._sequences[request_id]
        sampling = sequence.generation.sampling
        if sequence.stored_tokens:
            self._store_prefix(sequence)
        sampler = sequence.sampler
        raw = row.copy() if sampling.logprobs is not None and sampler.is_edited else row
        token = sampler.sample(row)
        is_end = token < 0 or (token in self.model.end_tokens and not sampling.is_eos_ignored)
        token = token if token >= 0 else self.model.eos_token
        sequence.tokens.append(token)
        logprob = None
        if sampling.logprobs is not None:
            if sampler.is_edited or sampling.temperature != 1.0:  # otherwise the draw has just computed them
                self._scratch.weights(raw, 1.0)
            logprob = self._logprob(raw, token, sampling.logprobs)
        return SampledToken(request_id, token, is_end, logprob)

    def _logprob(self, raw: Floats, token: int, count: int) -> TokenLogprob:
        total = self._scratch.log_total()
        top = tuple((self._text(int(i)), float(raw[i]) - total) for i in likeliest(raw, count))
        return TokenLogprob(self._text(token), float(raw[token]) - total, top)

    def _text(self, token: int) -> str:
        return self.model.piece(token).decode(errors="replace")

    def _store_prefix(self, sequence: _Sequence) -> None:
        tokens = np.array(sequence.tokens[: sequence.stored_tokens], dtype=np.int32)
        entry, freed = self._prefixes.store(tokens)
        for victim in freed:
            self._context.drop(victim)
        if entry is not None:
            self._context.copy(sequence.held_place, entry.sequence, len(tokens))
        sequence.stored_tokens = 0

    def _unpin(self, sequence: _Sequence) -> None:
        if sequence.prefix is not None:
            self._prefixes.unpin(sequence.prefix)
            sequence.prefix, sequence.prefix_tokens = None, 0
