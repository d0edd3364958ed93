import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.core.ledger import Sequence
from setpoint.model import Request, ServiceClass, Slo, decode_deadline
from setpoint.units import Instant, Tokens

seconds = st.floats(min_value=0.0, max_value=1e3)
slos = st.builds(
    Slo,
    ttft_s=st.none() | seconds,
    ttft_per_prompt_token_s=st.floats(min_value=0.0, max_value=0.1),
    tpot_s=st.none() | seconds,
    judged_by=st.sampled_from(["tpot", "pace"]),
)


@given(slo=slos, arrived_at=seconds, waited_s=seconds, tokens=st.integers(min_value=1, max_value=4096))
def test_the_policy_and_the_judge_mean_the_same_deadline(
    slo: Slo, arrived_at: float, waited_s: float, tokens: int
) -> None:
    request = Request(
        id=1,
        class_name="chat",
        arrived_at=Instant(arrived_at),
        prompt_tokens=Tokens(100),
        output_tokens_max=Tokens(5000),
    )
    sequence = Sequence(request, ServiceClass(name="chat", slo=slo))
    assert sequence.token_deadline() is None
    first_token_at = Instant(arrived_at + waited_s)
    sequence.begin(first_token_at)
    sequence.output_tokens = tokens
    due = decode_deadline(
        slo,
        arrived_at=request.arrived_at,
        prompt_tokens=request.prompt_tokens,
        first_token_at=first_token_at,
        tokens=Tokens(tokens),
    )
    assert sequence.token_deadline() == (None if due is None else pytest.approx(due))
