"""Recorded workloads in each public form, their bad rows, and how they are scaled."""

import json

import pytest

from setpoint.errors import WorkloadError
from setpoint.workload import PlannedRequest, at_rate, clip, mean_rps, read_trace, scale_lengths, stretch, window

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.5000000,374,44
2023-11-17 00:00:01.7500000,396,109
""".splitlines()


def test_azure_timestamps_count_from_the_first_across_midnight() -> None:
    plan = read_trace(AZURE)
    assert [one.at_s for one in plan] == pytest.approx([0.0, 2.25], abs=1e-4)
    assert [(one.prompt_tokens, one.output_tokens) for one in plan] == [(374, 44), (396, 109)]


def test_azure_2024_dates_with_an_offset_cross_a_leap_day() -> None:
    rows = [AZURE[0], "2024-02-29 23:59:59.000+00:00,1,2", "2024-03-01 00:00:00.000+00:00,1,2"]
    assert read_trace(rows)[1].at_s == pytest.approx(1.0, abs=1e-4)


def test_burstgpt_failures_are_left_out() -> None:
    rows = [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,1087,0,1087,Conversation log",
        "118,GPT-4,417,276,693,Conversation log",
    ]
    assert [(one.at_s, one.prompt_tokens) for one in read_trace(rows)] == [(0.0, 472), (113.0, 417)]


def test_mooncake_times_are_milliseconds_and_blocks_are_kept() -> None:
    rows = [
        '{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}',
        '{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [1, 9]}',
    ]
    plan = read_trace(rows)
    assert plan[1].at_s == 3.0
    assert plan[1].prefix_blocks == (1, 9)


def test_our_own_forms_are_told_apart_by_their_first_line() -> None:
    assert read_trace(["arrival_s,prompt_tokens,output_tokens", "0.5,3,4"])[0].prompt_tokens == 3
    row = {"arrival_s": 1.0, "prompt_tokens": 3, "output_tokens": 4, "prefix_blocks": [0], "class_name": "chat"}
    assert read_trace([json.dumps(row)])[0].class_name == "chat"
    assert read_trace(['{"prompt": "hello there, you", "output_tokens": 9}'])[0].text == "hello there, you"


def test_sharegpt_takes_the_first_exchange_of_each_conversation() -> None:
    talk = [{"from": "human", "value": "a" * 40}, {"from": "gpt", "value": "b" * 80}, {"from": "human", "value": "c"}]
    plan = read_trace([json.dumps([{"id": "x", "conversations": talk}, {"id": "y", "conversations": talk[1:]}])])
    assert [(one.prompt_tokens, one.output_tokens) for one in plan] == [(10, 20)]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([AZURE[0], AZURE[1], "2023-11-17 00:00:01,x,9"], "row 3: 'ContextTokens' must be a number"),
        ([AZURE[0], "yesterday,1,9"], "row 2: cannot read the time"),
        (["arrival_s,prompt_tokens,output_tokens", "1.0,-5,9"], "row 2: 'prompt_tokens' must lie in"),
        (["arrival_s,prompt_tokens,output_tokens", "-1.0,5,9"], "row 2: the time must not be negative"),
        (["arrival_s,prompt_tokens,output_tokens", "1.0,5"], "row 2: 'output_tokens' must be a number"),
        (['{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1}', "{oops"], "row 2: not valid JSON"),
        (['{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": "ab"}'], "row 1: the ids of prefix"),
        (['{"prompt": ""}'], "row 1: 'prompt' must be a text"),
        (['[{"id": "x"}]'], "entry 1: there is no list"),
        (["arrival_s,prompt_tokens,output_tokens"], "there is no request in it"),
        (["what is this"], "cannot tell its form"),
        ([], "cannot tell its form"),
    ],
)
def test_a_bad_row_is_named(rows: list[str], complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        read_trace(rows, name="t.csv")


def planned(at_s: float, prompt: int = 1000, output: int = 100) -> PlannedRequest:
    return PlannedRequest(
        id=0,
        at_s=at_s,
        prompt_tokens=prompt,
        output_tokens=output,
        prefix_blocks=(1, 2),
        prefix_id=1,
        prefix_tokens=500,
    )


def test_stretching_time_by_two_halves_the_rate() -> None:
    plan = [planned(0.0), planned(1.0), planned(4.0)]
    assert mean_rps(stretch(plan, 2.0)) == pytest.approx(mean_rps(plan) / 2.0)
    assert mean_rps(at_rate(plan, 3.0)) == pytest.approx(3.0)


def test_clipping_a_prompt_clips_its_prefix_too() -> None:
    (short,) = clip([planned(0.0)], prompt_max=400, output_max=10)
    assert (short.prompt_tokens, short.output_tokens, short.prefix_blocks, short.prefix_tokens) == (400, 10, (1,), 200)
    assert clip([planned(0.0)]) == [planned(0.0)]


def test_scaled_lengths_stay_above_zero() -> None:
    (tiny,) = scale_lengths([planned(0.0)], prompt=1e-6, output=0.5)
    assert (tiny.prompt_tokens, tiny.output_tokens) == (1, 50)


def test_a_window_counts_from_its_own_start() -> None:
    assert [one.at_s for one in window([planned(1.0), planned(3.0), planned(5.0)], start_s=2.0, end_s=5.0)] == [1.0]


def test_impossible_scales_are_refused() -> None:
    with pytest.raises(WorkloadError):
        stretch([], 0.0)
    with pytest.raises(WorkloadError):
        scale_lengths([], prompt=-1.0)
    with pytest.raises(WorkloadError):
        at_rate([planned(0.0)], 1.0)


BACKWARDS = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n5,1,1\n3.5,1,1\n"
MOONCAKE_ROW = '{"timestamp": %d, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BACKWARDS, "t, row 4: its time lies 1.5 s before row 3's"),
        (MOONCAKE_ROW % 9 * 2 + MOONCAKE_ROW % 7, "t, row 3: its time lies 0.002 s before row 2's"),
    ],
)
def test_a_trace_whose_time_runs_backwards_is_refused_with_the_row(text: str, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint) as caught:
        read_trace(text.splitlines(keepends=True), name="t")
    assert caught.value.hint == "sort the file by its times"
