"""What is true of a replica machine between any two events; tests assert it, and a bug report may print it.

Each function looks at one machine, changes nothing and yields a sentence for each violation. Where the capacity shrank
below what is held, more may be held than there is, until that ends; nothing else excuses a violation.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from setpoint.core.ledger import Ledger, Sequence
from setpoint.core.replica import ReplicaMachine


def violations(machine: ReplicaMachine, *, has_shrunk: bool = False) -> list[str]:
    """Return a sentence for each invariant that does not hold; `has_shrunk`: the capacity was once larger."""
    ledger = machine.ledger
    found = [sentence for check in _OF_LEDGER for sentence in check(ledger)]
    found += step_is_running(machine)
    if not has_shrunk and min(ledger.free_slots, ledger.free_blocks) < 0:
        found.append("more is held than there is")
    return found


def each_in_one_place(ledger: Ledger) -> Iterator[str]:
    """Check that each sequence waits (and holds nothing) or runs in prefill or decode (and holds a slot)."""
    waiting = [request_id for _, request_id in ledger.waiting]
    places = Counter([*waiting, *ledger.prefilling, *ledger.decoding, *ledger.ending])
    for request_id in places.keys() | ledger.sequences.keys():
        if places[request_id] != 1 or request_id not in ledger.sequences:
            yield f"request {request_id} is in {places[request_id]} places"
    for request_id in waiting:
        sequence = ledger.sequences.get(request_id)
        if sequence is not None and (sequence.slot is not None or sequence.blocks):
            yield f"request {request_id} waits and holds something"
    for sequence in running(ledger):
        if sequence.slot is None:
            yield f"request {sequence.id} runs without a slot"


def queue_is_sorted(ledger: Ledger) -> Iterator[str]:
    """Check that the waiting stand in the order of their own keys, and are counted by class."""
    if ledger.waiting != sorted(ledger.waiting):
        yield "the waiting queue is out of order"
    by_class = Counter[str]()
    tokens = Counter[bool]()
    for key, request_id in ledger.waiting:
        sequence = ledger.sequences.get(request_id)
        if sequence is None:
            continue
        by_class[sequence.service_class.name] += 1
        tokens[sequence.is_harvest] += sequence.remaining_tokens
        if sequence.key != key:
            yield f"request {request_id} waits under a key that is not its own"
    if tokens != Counter(ledger.waiting_tokens):
        yield "the tokens of the waiting are miscounted"
    if by_class != Counter(ledger.waiting_by_class):
        yield "the waiting are miscounted"


def slots_are_conserved(ledger: Ledger) -> Iterator[str]:
    """Check that each slot is free or held once; only what began under a larger capacity holds one beyond it."""
    held = Counter(s.slot for s in running(ledger) if s.slot is not None)
    for slot, count in held.items():
        if count > 1:
            yield f"slot {slot} is held {count} times"
    if ledger.running != len([*running(ledger)]):
        yield "the running are miscounted"
    if sorted(ledger.vacant) != [slot for slot in range(ledger.capacity.slots) if slot not in held]:
        yield "free slots are not those that nobody holds"


def blocks_are_conserved(ledger: Ledger) -> Iterator[str]:
    """Check that the blocks held add up, and are enough for each sequence (in prefill, for all it will compute)."""
    if ledger.blocks_held != sum(s.blocks for s in running(ledger)):
        yield "the blocks held do not add up"
    for sequence in ledger.prefilling.values():
        if sequence.blocks < ledger.blocks_for(sequence, sequence.target_tokens):
            yield f"request {sequence.id} lacks blocks for its prefill"
    for sequence in ledger.decoding.values():
        if sequence.blocks < ledger.blocks_for(sequence, sequence.computed_tokens):
            yield f"request {sequence.id} lacks blocks for its tokens"


def tokens_are_sane(ledger: Ledger) -> Iterator[str]:
    """Check that tokens lie within their limits, and that in decode all but the last of them are computed."""
    for sequence in ledger.sequences.values():
        if not 0 <= sequence.cached_tokens <= sequence.computed_tokens:
            yield f"request {sequence.id} has computed less than was cached"
        is_ending = sequence.id in ledger.ending
        if not 0 <= sequence.output_tokens < sequence.output_tokens_max + is_ending:
            yield f"request {sequence.id} has {sequence.output_tokens} of {sequence.output_tokens_max} output tokens"
    for sequence in ledger.prefilling.values():
        if sequence.remaining_tokens < 1:
            yield f"request {sequence.id} is in prefill with nothing left"
    for sequence in ledger.decoding.values():
        if sequence.computed_tokens != sequence.prompt_tokens + sequence.output_tokens - 1:
            yield f"request {sequence.id} decodes with {sequence.computed_tokens} tokens computed"


def decodes_are_filed(ledger: Ledger) -> Iterator[str]:
    """Check that what is known of those in decode without looking at each is what looking at each finds."""
    decodes, members = ledger.decodes, ledger.decoding.values()
    for sequence in members:
        if (sequence in decodes.harvest, sequence in decodes.protected) != (
            sequence.is_harvest,
            not sequence.is_harvest,
        ):
            yield f"request {sequence.id} decodes in another group than its own"
    if decodes.context(members) != sum(s.computed_tokens for s in members):
        yield "the context of the decodes does not add up"
    if members and decodes.steps_left() != min(s.output_tokens_max - s.output_tokens for s in members):
        yield "another decode has its longest output first"
    full = {s.id for s in members if s.blocks < ledger.blocks_for(s, s.computed_tokens + 1)}
    if {s.id for s in decodes.full(members)} != full:
        yield "the blocks of others are full"


def deadlines_are_sane(ledger: Ledger) -> Iterator[str]:
    """Check that no deadline lies before the arrival, and that the next to expire is known."""
    for sequence in ledger.sequences.values():
        for deadline in (sequence.ttft_deadline, sequence.expires_at, sequence.first_token_at):
            if deadline is not None and deadline < sequence.arrived_at:
                yield f"request {sequence.id} was due before it arrived"
    expiries = [s.expires_at for s in ledger.sequences.values() if s.slot is None and s.expires_at is not None]
    if ledger.next_expiry() != min(expiries, default=None):
        yield "the next expiry is not the earliest"


def step_is_running(machine: ReplicaMachine) -> Iterator[str]:
    """Check that the step in flight names each sequence once, and those that are still here run."""
    plan = machine.step_in_flight
    if plan is None:
        return
    named = Counter([*plan.decodes, *(request_id for request_id, _ in plan.prefills)])
    for request_id, count in named.items():
        if count > 1:
            yield f"request {request_id} is {count} times in the step in flight"
    for request_id, tokens in plan.prefills:
        sequence = machine.ledger.prefilling.get(request_id)
        if sequence is not None and not 0 < tokens <= sequence.remaining_tokens:
            yield f"request {request_id} computes {tokens} of {sequence.remaining_tokens} tokens left"
    for request_id in plan.decodes:
        sequence = machine.ledger.decoding.get(request_id)
        if sequence is not None and sequence.blocks < machine.ledger.blocks_for(sequence, sequence.computed_tokens + 1):
            yield f"request {request_id} lacks a block for the token in flight"


def running(ledger: Ledger) -> Iterator[Sequence]:
    """Yield every sequence that holds a slot."""
    yield from ledger.prefilling.values()
    yield from ledger.decoding.values()
    yield from ledger.ending.values()


_OF_LEDGER: tuple[Callable[[Ledger], Iterator[str]], ...] = (
    each_in_one_place,
    queue_is_sorted,
    slots_are_conserved,
    blocks_are_conserved,
    tokens_are_sane,
    decodes_are_filed,
    deadlines_are_sane,
)
