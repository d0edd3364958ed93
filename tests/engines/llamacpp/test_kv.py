"""How the KV cache is cut up, as laws over the sizes asked for."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from setpoint.engines.llamacpp.kv import STEP, plan_kv
from setpoint.errors import ConfigError

SIZES = {"prefixes": 8, "prefix_tokens": 4096}


def test_each_slot_gets_the_context_asked_for_and_the_prefixes_come_on_top() -> None:
    plan = plan_kv("per-slot", slots=4, kv_tokens=None, context_tokens=1000, **SIZES)
    assert (plan.sequence_tokens, plan.room_tokens, plan.prefixes) == (1000, 4 * 1024, 4)
    assert (plan.places, plan.cells) == (4 + 1, (5 + 4) * 1024)


def test_a_plan_read_back_from_its_own_cells_gives_no_slot_less() -> None:
    for context in (100, 1000, 2048, 9000):
        plan = plan_kv("per-slot", slots=7, kv_tokens=None, context_tokens=context, **SIZES)
        again = plan_kv("per-slot", slots=7, kv_tokens=plan.room_tokens, context_tokens=context, **SIZES)
        assert again.sequence_tokens == context


@given(
    slots=st.integers(1, 64),
    kv_tokens=st.integers(1, 1 << 17),
    prefixes=st.integers(0, 8),
    prefix_tokens=st.integers(0, 4096),
)
def test_what_is_planned_fits_its_cells(slots: int, kv_tokens: int, prefixes: int, prefix_tokens: int) -> None:
    assume(kv_tokens >= slots * STEP)
    plan = plan_kv(
        "per-slot",
        slots=slots,
        kv_tokens=kv_tokens,
        context_tokens=None,
        prefixes=prefixes,
        prefix_tokens=prefix_tokens,
    )
    assert plan.cells % ((plan.places + plan.prefixes) * STEP) == 0
    assert plan.places * plan.sequence_tokens + plan.prefix_tokens == plan.cells
    assert plan.places - slots == (slots > 1)
    assert kv_tokens - slots * STEP < plan.room_tokens == slots * plan.sequence_tokens <= kv_tokens
    assert (plan.prefixes > 0) == (prefixes > 0 and prefix_tokens > 0)


def test_a_shared_pool_lets_one_sequence_have_it_all() -> None:
    plan = plan_kv("shared", slots=4, kv_tokens=8192, context_tokens=None, **SIZES)
    assert (plan.cells, plan.room_tokens, plan.sequence_tokens) == (8192 + 4096, 8192, 8192)


def test_a_cache_that_cannot_give_each_slot_its_context_says_what_would() -> None:
    with pytest.raises(ConfigError, match="context_tokens is 2000") as caught:
        plan_kv("per-slot", slots=16, kv_tokens=8192, context_tokens=2000, **SIZES)
    assert "32768" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="each of 16 slots 0 tokens"):
        plan_kv("per-slot", slots=16, kv_tokens=2000, context_tokens=None, **SIZES)
    with pytest.raises(ConfigError, match="no engine"):
        plan_kv("shared", slots=0, kv_tokens=4096, context_tokens=None, **SIZES)
