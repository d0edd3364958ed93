"""Laws of the way in: whatever the bytes, either a request comes out or a fault that names what is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.engines.api import Refused
from setpoint.errors import EngineError, RequestError
from setpoint.gateway.auth import Keyring
from setpoint.gateway.faults import Fault, fault_of, refusal
from setpoint.gateway.service import choose_service
from setpoint.gateway.wire import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, decode
from setpoint.settings import ApiKey, Settings, parse_settings
from setpoint.units import Seconds

KINDS = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
FIELDS = sorted({name for kind in KINDS for name in kind.__struct_fields__} | {"tools", "user", "echo", "nonsense"})

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)


def fault_in(body: bytes, kind: type[Any]) -> RequestError | None:
    try:
        decode(body, kind)
    except RequestError as error:
        return error
    return None


@given(body=st.binary(max_size=200), kind=st.sampled_from(KINDS))
def test_any_bytes_give_a_request_or_a_request_error(body: bytes, kind: type[Any]) -> None:
    error = fault_in(body, kind)
    assert error is None or error.message


@given(fields=objects, kind=st.sampled_from(KINDS))
def test_any_object_gives_a_request_or_an_error_that_names_a_field(fields: dict[str, Any], kind: type[Any]) -> None:
    error = fault_in(json.dumps(fields).encode(), kind)
    assert error is None or error.param or error.code == "invalid_json"


def test_a_null_field_is_a_field_that_was_not_given() -> None:
    nulls = dict.fromkeys([*FIELDS, "anything"], None)
    body = {**nulls, "messages": [{"role": "user", "content": "Hi"}]}
    assert decode(json.dumps(body).encode(), ChatRequest) == decode(
        b'{"messages":[{"role":"user","content":"Hi"}]}', ChatRequest
    )


@given(retry_after_s=st.floats(min_value=0.0, max_value=1e6))
def test_retry_after_is_a_whole_number_of_seconds_that_suffices(retry_after_s: float) -> None:
    fault = refusal(Refused(reason="queue_full", message="full", retry_after_s=Seconds(retry_after_s)))
    assert fault.status == 429
    assert int(fault.headers["retry-after"]) >= max(1.0, retry_after_s)


def test_an_unforeseen_error_tells_nothing_of_its_insides() -> None:
    assert "secret" not in str(fault_of(ValueError("secret")))
    assert fault_of(EngineError("the engine failed")).status == 500


def chosen(settings: Settings, tier: Any = None, key: ApiKey | None = None, **headers: str) -> str:  # noqa: ANN401
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return choose_service(settings, named, tier, key).class_name


def test_the_header_goes_before_the_tier_the_tier_before_the_key_the_key_before_the_default() -> None:
    key = ApiKey(name="alice", secret="0123456789", class_name="agent")  # noqa: S106 - of this test
    settings = Settings(keys=(key,))
    assert chosen(settings, "flex", key, x_setpoint_class="voice") == "voice"
    assert chosen(settings, "flex", key) == "batch"
    assert chosen(settings, "auto", key) == "agent"
    assert chosen(settings, None, key) == "agent"
    assert chosen(settings) == "standard"
    assert chosen(parse_settings({"tiers": {"auto": "chat"}})) == "chat"


def test_a_key_may_use_its_own_class_and_those_that_it_lists() -> None:
    key = ApiKey(name="bob", secret="0123456789", class_name="batch", class_names=("chat",))  # noqa: S106 - of this test
    assert chosen(Settings(), "flex", key) == "batch"
    assert chosen(Settings(), "priority", key) == "chat"
    with pytest.raises(Fault) as caught:
        chosen(Settings(), "default", key)
    assert caught.value.status == 403


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e300"])
def test_a_target_that_is_no_duration_is_refused_with_its_header(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        chosen(Settings(), x_setpoint_ttft_ms=value)
    assert caught.value.param == "x-setpoint-ttft-ms"


@given(offered=st.text())
def test_only_the_secret_itself_opens(offered: str) -> None:
    ring = Keyring([ApiKey(name="alice", secret="0123456789")])  # noqa: S106 - of this test
    header = {"authorization": f"Bearer {offered}"}
    if offered.strip() == "0123456789":
        assert ring.identify(header) is not None
    else:
        with pytest.raises(Fault):
            ring.identify(header)
