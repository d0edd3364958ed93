"""What vLLM made of a step, in the words of the core: who decodes, who prefills how much, whom it has let in.

vLLM names all whom it scheduled. As a rule they are just those whom it was shown, hundreds perhaps, so that comparing
two numbers tells it; only where they are not is each name looked at.
"""

from collections.abc import Mapping
from typing import NamedTuple

from setpoint.core.ledger import Ledger
from setpoint.engines.vllm.arrange import Arrangement
from setpoint.engines.vllm.host import HostRequest, StepResult


class Begun(NamedTuple):
    """As in `setpoint.model.StepBegun`."""

    decodes: tuple[int, ...]
    prefills: tuple[tuple[int, int], ...]
    admitted: tuple[tuple[int, int, int], ...]


def begun(
    result: StepResult,
    shown: Arrangement | None,
    ledger: Ledger,
    ids: Mapping[str, int],
    requests: Mapping[int, HostRequest],
) -> Begun:
    """Return what `result` computes of those that the core knows; `shown`: what vLLM saw, if a plan was put to it."""
    decodes, prefills = None, None
    if shown is not None:
        decodes, prefills = shown.running[: shown.decodes], _as_shown(result, shown, requests)
    if decodes is None or prefills is None:
        decodes, prefills = _by_name(result, ledger, ids)
    admitted = []
    for request_id, tokens in prefills:
        if request_id not in ledger.prefilling:
            request = requests[request_id]
            admitted.append((request_id, request.num_computed_tokens - tokens, request.num_tokens))
    return Begun(decodes, prefills, tuple(admitted))


def _as_shown(
    result: StepResult, shown: Arrangement, requests: Mapping[int, HostRequest]
) -> tuple[tuple[int, int], ...] | None:
    """Return the prefills if vLLM has scheduled all whom it was shown, the decodes with one token each."""
    scheduled = result.num_scheduled_tokens
    if len(scheduled) != len(shown.running) + len(shown.admitted):
        return None
    chunks = (*shown.running[shown.decodes :], *shown.admitted)
    prefills = tuple([(i, scheduled.get(requests[i].request_id, 0)) for i in chunks])
    if shown.decodes + sum([tokens for _, tokens in prefills]) != result.total_num_scheduled_tokens:
        return None
    return prefills if all(tokens for _, tokens in prefills) else None


def _by_name(
    result: StepResult, ledger: Ledger, ids: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    decodes, prefills = [], []
    for name, tokens in result.num_scheduled_tokens.items():
        request_id = ids.get(name)
        if request_id is None:
            continue
        if request_id in ledger.decoding:
            decodes.append(request_id)
        else:
            prefills.append((request_id, tokens))
    return tuple(decodes), tuple(prefills)
