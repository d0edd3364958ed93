"""What `setpoint.toml` may say, and how a fault in it is told."""

import tomllib

import pytest

from setpoint.errors import ConfigError
from setpoint.model import PRESETS
from setpoint.settings import Settings, parse_settings, settings_table
from setpoint.units import Seconds


def faults_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(tomllib.loads(text), strategies=("slack", "continuous"))
    return caught.value.message


def test_an_empty_file_gives_the_defaults() -> None:
    assert parse_settings({}) == Settings()


def test_a_table_named_like_a_preset_edits_it_and_leaves_the_rest() -> None:
    settings = parse_settings(tomllib.loads("[classes.chat]\nttft_ms = 350\n"))
    assert settings.classes["chat"].slo.ttft_s == Seconds(0.35)
    assert settings.classes["chat"].slo.tpot_s == PRESETS["chat"].slo.tpot_s
    assert settings.classes["batch"] == PRESETS["batch"]


def test_a_new_class_starts_from_the_preset_that_it_names() -> None:
    settings = parse_settings(tomllib.loads('[classes.phone]\npreset = "voice"\ne2e_s = 4\ntpot_ms = "none"\n'))
    phone = settings.classes["phone"]
    assert (phone.name, phone.slo.ttft_s, phone.slo.tpot_s, phone.slo.e2e_s) == ("phone", 0.15, None, 4.0)


def test_writing_and_reading_give_the_same_settings() -> None:
    text = """
    [server]
    port = 9000
    default_class = "phone"
    [engine]
    slots = 8
    [strategy]
    name = "continuous"
    token_budget = 64
    [classes.phone]
    preset = "voice"
    ttft_ms = 149.9
    wait_max_s = 12.5
    [tiers]
    auto = "phone"
    [keys.alice]
    secret = "sk-alice-secret"
    class = "chat"
    classes = ["chat", "batch"]
    """
    settings = parse_settings(tomllib.loads(text))
    assert parse_settings(settings_table(settings)) == settings


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() -> None:
    assert faults_of("[classes.chat]\nttf_ms = 3\n") == "classes.chat.ttf_ms: unknown key (did you mean ttft_ms?)"
    assert faults_of("[sever]\n") == "sever: unknown table (did you mean server?)"
    assert faults_of("[server]\nprot = 3\n") == "server.prot: unknown key (did you mean port?)"


def test_every_fault_is_told_at_once() -> None:
    message = faults_of('[server]\nport = "x"\n[engine]\nslots = 0\n[strategy]\nname = "slak"\n')
    assert message == (
        "server.port: expected int, got str; engine.slots: expected int >= 1; "
        "strategy.name: unknown strategy 'slak' (did you mean slack?)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[classes.chat]\nttft_ms = "none"\nlate = "refuse"\n', "classes.chat.late: "),
        ('[classes.batch]\njudged_by = "pace"\n', "classes.batch.judged_by: "),
        ("[classes.batch]\nttft_ms = 100\n", "classes.batch.is_harvest: "),
        ("[classes.chat]\ne2e_s = 0.1\n", "classes.chat.e2e_s: "),
        ("[engine]\nkv_tokens = 512\ncontext_tokens = 1024\n", "engine.kv_tokens: "),
        ("[engine]\nstep_tokens_max = 4\nslots = 8\n", "engine.step_tokens_max: "),
        ('[tiers]\nflex = "bach"\n', "tiers.flex: unknown class 'bach' (did you mean batch?)"),
        ('[tiers]\nfast = "chat"\n', "tiers.fast: unknown service tier"),
        ('[server]\ndefault_class = "x"\n', "server.default_class: unknown class 'x'"),
        ('[keys]\na = "0123456789"\nb = "0123456789"\n', "keys.b.secret: the same secret as keys.a"),
        ('[keys]\na = "short"\n', "keys.a.secret: must be at least 8"),
        ('[keys.a]\nclass = "chat"\n', "keys.a: secret is missing"),
        ('[classes.chat]\npreset = "vocie"\n', "classes.chat.preset: unknown preset 'vocie' (did you mean voice?)"),
        ("[classes]\nchat = 3\n", "classes.chat: expected a table [classes.chat], got int"),
        ("[classes.chat]\npercentile = 95\n", "classes.chat.percentile: expected float < 1.0"),
        ("[strategy]\nx = [1]\n", "strategy.x: expected a number"),
    ],
)
def test_a_contradiction_is_told_with_its_place(text: str, message: str) -> None:
    assert faults_of(text).startswith(message)
