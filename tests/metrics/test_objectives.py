"""Objectives: how they are read, and how honest their verdicts are."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import WorkloadError
from setpoint.metrics import RequestRecord
from setpoint.metrics.objective import Objective, judge, slos_of, tightest_s, verdict_of, violations
from setpoint.metrics.sequential import look, sprt
from setpoint.metrics.slo_text import MLPERF, parse_objectives


def test_the_example_of_the_manual_is_read() -> None:
    chat_ttft, chat_tpot, batch = parse_objectives("chat: ttft_p95<200ms, tpot_p95 <= 50 ms; batch: e2e_p90<1.5min")
    assert chat_ttft == Objective(class_name="chat", metric="ttft", quantile=0.95, limit_s=0.2)
    assert chat_tpot.limit_s == pytest.approx(0.05)
    assert (batch.class_name, batch.metric, batch.limit_s) == ("batch", "e2e", 90.0)


def test_presets_stand_for_their_limits() -> None:
    assert [one.text for one in parse_objectives("chat")] == ["chat: ttft_p95<200ms", "chat: tpot_p95<50ms"]
    assert [one.text for one in parse_objectives("a: voice")] == ["a: ttft_p95<150ms", "a: tpot_p95<40ms"]
    assert [one.text for one in parse_objectives("mlperf:llama2-70b")] == ["ttft_p99<2s", "tpot_p99<200ms"]
    assert all(len(parse_objectives(name)) == 2 for name in MLPERF)


@given(
    st.sampled_from(["chat", "*"]),
    st.sampled_from(["ttft", "tpot", "itl", "e2e"]),
    st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9]),
    st.integers(1, 100_000),
)
def test_what_is_written_reads_as_it_was(owner: str, metric: str, percent: float, ms: int) -> None:
    one = Objective(class_name=owner, metric=metric, quantile=percent / 100, limit_s=ms / 1e3)  # type: ignore[arg-type]
    (read,) = parse_objectives(one.text)
    assert (read.class_name, read.metric) == (one.class_name, one.metric)
    assert read.quantile == pytest.approx(one.quantile)
    assert read.limit_s == pytest.approx(one.limit_s)


@pytest.mark.parametrize(
    ("text", "complaint", "at"),
    [
        ("chat: ttft_p95 200ms", "expected METRIC_pNN<LIMIT", 14),
        ("chat: ttft_p95<200", "expected METRIC_pNN<LIMIT", 18),
        ("chat: speed_p95<200ms", "unknown metric 'speed'", 6),
        ("ttft_p95<200ms, tpot_p95<5h", "unknown unit 'h'", 26),
        ("ttft_p100<200ms", "a percentile lies", 6),
        ("ttft_p95<0ms", "must be positive", 9),
        ("ttft_p95<200ms,", "is missing here", 15),
        ("", "is missing here", 0),
        ("errors<200%", "a share of errors", 0),
    ],
)
def test_a_fault_is_pointed_at(text: str, complaint: str, at: int) -> None:
    with pytest.raises(WorkloadError, match=complaint) as caught:
        parse_objectives(text)
    assert caught.value.message.splitlines()[-1].index("^") == at + 2


def test_the_same_objective_twice_is_refused() -> None:
    with pytest.raises(WorkloadError, match="ttft_p95 twice"):
        parse_objectives("ttft_p95<200ms, ttft_p95<300ms")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_politely(text: str) -> None:
    try:
        found = parse_objectives(text)
    except WorkloadError as error:
        found = parse_objectives(error.hint.split("'")[1] if error.hint else "")
    assert found


@pytest.mark.parametrize(("violated", "n"), [(0, 59), (1, 93), (3, 153), (10, 336), (20, 577)])
def test_the_fewest_requests_that_prove_p95_agree_with_the_table(violated: int, n: int) -> None:
    assert verdict_of(violated, n, 0.05) == "met"
    assert verdict_of(violated, n - 1, 0.05) == "undecided"


def answered(ttfts: list[float], *, failed: int = 0) -> list[RequestRecord]:
    return [
        RequestRecord(
            id=number,
            class_name="chat",
            scheduled_at=float(number),
            sent_at=float(number),
            first_token_at=number + ttft,
            ended_at=number + ttft + 1.0,
            output_tokens=11,
            error="timeout" if number < failed else None,
        )
        for number, ttft in enumerate(ttfts)
    ]


P95 = Objective(class_name="chat", metric="ttft", quantile=0.95, limit_s=0.2)


def test_failures_violate_and_strangers_do_not_count() -> None:
    records = answered([0.1] * 10 + [0.3] * 5, failed=2)
    assert sum(violations(records, P95)) == 7
    records[0].class_name = "batch"
    assert len(violations(records, P95)) == 14


def test_gaps_are_judged_over_all_gaps() -> None:
    fast = RequestRecord(id=0, class_name="chat", scheduled_at=0.0, sent_at=0.0, first_token_at=1.0, ended_at=1.9)
    fast.event_at, fast.output_tokens = [1.0 + 0.1 * i for i in range(10)], 10
    slow = RequestRecord(id=1, class_name="chat", scheduled_at=0.0, sent_at=0.0, first_token_at=1.0, ended_at=1.5)
    slow.event_at, slow.output_tokens = [1.0, 1.5], 2
    flags = violations([fast, slow], Objective(metric="itl", quantile=0.9, limit_s=0.2))
    assert sum(flags) / len(flags) == pytest.approx(1 / 10)


def test_a_clear_run_is_met_a_bad_one_missed_and_a_short_one_undecided() -> None:
    generator = random.Random(5)

    def run(n: int, share: float) -> list[RequestRecord]:
        return answered([0.3 if generator.random() < share else 0.1 for _ in range(n)])

    assert judge(run(1000, 0.01), P95).verdict == "met"
    assert judge(run(1000, 0.15), P95).verdict == "missed"
    assert judge(run(40, 0.02), P95).verdict == "undecided"
    assert judge([], P95).verdict == "undecided"
    assert judge(run(1000, 0.15), P95).margin < -2.0


def test_a_run_exactly_at_the_limit_is_seldom_declared_met() -> None:
    verdicts = []
    for seed in range(100):
        generator = random.Random(seed)
        records = answered([0.3 if generator.random() < 0.05 else 0.1 for _ in range(600)])
        verdicts.append(judge(records, P95).verdict)
    assert verdicts.count("met") <= 12
    assert verdicts.count("missed") <= 12


def test_a_sequential_look_ends_clear_trials_and_keeps_open_ones() -> None:
    assert sprt([0.0] * 49, 0.05) is None
    assert sprt([0.0] * 400, 0.05) == "met"
    assert sprt([1.0, 0.0] * 100, 0.05) == "missed"
    assert sprt([0.0] * 100 + [1.0] * 5, 0.05) is None
    assert look(answered([0.1] * 400), [P95]) == "met"
    assert look(answered([0.1, 0.5] * 200), [P95]) == "missed"
    assert look(answered([0.1] * 10), [P95]) is None


def test_objectives_of_a_class_become_one_slo() -> None:
    slos = slos_of(parse_objectives("chat: ttft_p95<200ms, tpot_p99<50ms, errors<1%; batch: e2e_p90<30s"))
    assert slos["chat"].ttft_s == 0.2
    assert slos["chat"].tpot_s == pytest.approx(0.05)
    assert slos["chat"].percentile == 0.95
    assert slos["batch"].e2e_s == 30.0


def test_a_joint_objective_counts_requests_that_miss_any_part() -> None:
    def one(number: int, ttft_s: float, tpot_s: float) -> RequestRecord:
        return RequestRecord(
            id=number,
            class_name="c",
            scheduled_at=0.0,
            sent_at=0.0,
            first_token_at=ttft_s,
            ended_at=ttft_s + 10 * tpot_s,
            output_tokens=11,
        )

    records = [one(0, 0.1, 0.01), one(1, 0.3, 0.01), one(2, 0.1, 0.09), one(3, 0.3, 0.09)]
    (joint,) = parse_objectives("(ttft<200ms & tpot<50ms)_p95")
    assert violations(records, joint) == [0.0, 1.0, 1.0, 1.0]
    ttft, tpot = parse_objectives("ttft_p95<200ms, tpot_p95<50ms")
    assert sum(violations(records, joint)) >= max(sum(violations(records, each)) for each in (ttft, tpot))
    assert tightest_s([joint, tpot]) == pytest.approx(0.2)
    slo = slos_of([joint])["*"]
    assert (slo.ttft_s, slo.tpot_s, slo.percentile) == pytest.approx((0.2, 0.05, 0.95))


def test_a_joint_objective_reads_as_it_is_written() -> None:
    text = "chat: (ttft<200ms & e2e<2s)_p90"
    (one,) = parse_objectives(text)
    assert one.text == text
    assert parse_objectives(f"{one.text}, ttft_p90<1s")[0] == one


@pytest.mark.parametrize(
    ("text", "complaint", "at"),
    [
        ("(ttft<200ms & speed<1ms)_p95", "unknown metric 'speed'", 14),
        ("(ttft<200ms & tpot<50)_p95", "expected METRIC<LIMIT", 14),
        ("(ttft<200ms", "expected .METRIC<LIMIT", 11),
        ("(ttft<200ms & ttft<3ms)_p95", "limited twice", 14),
        ("(ttft<2ms)_p101", "a percentile lies", 12),
    ],
)
def test_a_fault_inside_a_joint_objective_is_pointed_at(text: str, complaint: str, at: int) -> None:
    with pytest.raises(WorkloadError, match=complaint) as caught:
        parse_objectives(text)
    assert caught.value.message.splitlines()[-1].index("^") == at + 2


def test_a_queue_time_that_no_server_tells_meets_no_objective() -> None:
    record = RequestRecord(id=0, class_name="c", scheduled_at=0.0, sent_at=0.0, first_token_at=0.1, ended_at=0.2)
    (queue,) = parse_objectives("queue_p95<1s")
    assert judge([record] * 100, queue).requests == 0
