"""Recorded workloads, read from the lines of a file: our own forms and the field's public ones.

| form | what a row is | source |
|---|---|---|
| `csv` | `arrival_s,prompt_tokens,output_tokens` with optional `class_name` | this project |
| `azure` | `TIMESTAMP,ContextTokens,GeneratedTokens`, an absolute timestamp | Azure LLM inference traces 2023, 2024 |
| `burstgpt` | `Timestamp,Model,Request tokens,Response tokens,...`, seconds | BurstGPT (arXiv 2401.17644) |
| `mooncake` | JSON: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` | Mooncake (FAST 2025) |
| `jsonl` | JSON: `arrival_s`, `prompt_tokens`, `output_tokens`, optional `prefix_blocks`, `class_name` | this project |
| `prompts` | JSON: `prompt` (text), optional `output_tokens`, `class_name`; no times | the user |
| `sharegpt` | one JSON array of conversations; no times | ShareGPT |

Times count from the first request, and must not run backwards: a file out of order is one that was put together wrong,
and sorting it would hide that. A bad row is an error that names it; nothing is skipped in silence, but for rows of
BurstGPT whose answer failed (0 response tokens), which its authors mark so, and ShareGPT entries that do not begin with
a person's words.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, Literal, get_args

from msgspec.structs import replace

from setpoint.errors import WorkloadError
from setpoint.workload.lengths import TOKENS_MAX
from setpoint.workload.plan import PlannedRequest

Form = Literal["csv", "azure", "burstgpt", "mooncake", "jsonl", "prompts", "sharegpt"]
CountTokens = Callable[[str], int]

CHARACTERS_A_TOKEN = 4
OUTPUT_DEFAULT = 128
_HINT = "docs/bench.md shows the forms of a trace; --trace-form names one"
_COLUMNS: dict[str, tuple[str, str, str]] = {
    "csv": ("arrival_s", "prompt_tokens", "output_tokens"),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}


def rough_count(text: str) -> int:
    """Return a rough token count: a token for each four characters, one at least."""
    return max(1, len(text) // CHARACTERS_A_TOKEN)


def read_trace(
    lines: Iterable[str], form: Form | None = None, *, name: str = "trace", count_tokens: CountTokens = rough_count
) -> list[PlannedRequest]:
    """Return the requests of a recorded workload, in its order; `form` is told from the first line when not given.

    `name` is what errors call the file. `count_tokens` counts the text of `prompts` and `sharegpt`.
    Raises WorkloadError, naming the row (counted from 1), when one is malformed, or when there are none.
    """
    stream = iter(lines)
    first = next((line for line in stream if line.strip()), "")
    rows = chain([first], stream)
    form = form or detect(first, name)
    if form == "sharegpt":
        found = list(_read_sharegpt(rows, name, count_tokens))
    elif form in _COLUMNS:
        found = list(_read_columns(rows, form, name))
    else:
        found = list(_read_json_lines(rows, form, name, count_tokens))
    if not found:
        raise WorkloadError(f"{name}: there is no request in it", hint="name a file that holds some")
    for earlier, later in pairwise(found):
        if later.at_s < earlier.at_s:
            raise WorkloadError(
                f"{name}, row {later.id}: its time lies {earlier.at_s - later.at_s:g} s before row {earlier.id}'s",
                hint="sort the file by its times",
            )
    start = found[0].at_s
    return [replace(one, id=number, at_s=one.at_s - start) for number, one in enumerate(found)]


def detect(first: str, name: str = "trace") -> Form:
    """Return the form that the first line of a file suggests; raises WorkloadError when it suggests none."""
    text = first.strip().removeprefix("\ufeff")
    if text.startswith("["):
        return "sharegpt"
    if text.startswith("{"):
        for key, form in (("input_length", "mooncake"), ("arrival_s", "jsonl"), ("prompt", "prompts")):
            if f'"{key}"' in text:
                return form  # type: ignore[return-value]  # the pairs above hold forms
    for form, columns in _COLUMNS.items():
        if set(columns) <= {column.strip() for column in text.split(",")}:
            return form  # type: ignore[return-value]  # the keys of that table are forms
    raise WorkloadError(
        f"{name}: cannot tell its form from the first line", hint=f"name one of {', '.join(get_args(Form))}"
    )


def _read_columns(rows: Iterable[str], form: str, name: str) -> Iterator[PlannedRequest]:
    reader = csv.DictReader(rows, skipinitialspace=True)
    reader.fieldnames = [column.strip().removeprefix("\ufeff") for column in reader.fieldnames or []]
    time_column, prompt_column, output_column = _COLUMNS[form]
    missing = [column for column in _COLUMNS[form] if column not in reader.fieldnames]
    if missing:
        raise WorkloadError(f"{name}: there is no column {missing[0]!r}", hint=f"a {form} trace has {_COLUMNS[form]}")
    for number, row in enumerate(reader, start=2):
        place = f"{name}, row {number}"
        if form == "burstgpt" and row[output_column] in {"0", "0.0"}:
            continue
        yield PlannedRequest(
            id=number,
            at_s=_instant(row[time_column], place, is_clock=form == "azure"),
            prompt_tokens=_tokens(row[prompt_column], prompt_column, place),
            output_tokens=_tokens(row[output_column], output_column, place),
            class_name=row.get("class_name") or "standard",
        )


def _read_json_lines(rows: Iterable[str], form: Form, name: str, count_tokens: CountTokens) -> Iterator[PlannedRequest]:
    for number, line in enumerate(rows, start=1):
        if not line.strip():
            continue
        place = f"{name}, row {number}"
        row = _object(line, place)
        base = PlannedRequest(
            id=number, at_s=0.0, prompt_tokens=1, output_tokens=1, class_name=str(row.get("class_name", "standard"))
        )
        if form == "prompts":
            yield _user_prompt(row, base, place, count_tokens)
            continue
        is_mooncake = form == "mooncake"
        at_s = _instant(row.get("timestamp" if is_mooncake else "arrival_s"), place, is_clock=False)
        prompt, output = ("input_length", "output_length") if is_mooncake else ("prompt_tokens", "output_tokens")
        yield replace(
            base,
            at_s=at_s / 1000.0 if is_mooncake else at_s,
            prompt_tokens=_tokens(row.get(prompt), prompt, place),
            output_tokens=_tokens(row.get(output), output, place),
            prefix_blocks=_blocks(row.get("hash_ids" if is_mooncake else "prefix_blocks", []), place),
        )


def _user_prompt(row: dict[str, Any], base: PlannedRequest, place: str, count_tokens: CountTokens) -> PlannedRequest:
    text = row.get("prompt")
    if not isinstance(text, str) or not text:
        raise WorkloadError(
            f"{place}: 'prompt' must be a text that is not empty", hint='write {"prompt": "text", "output_tokens": 128}'
        )
    output = _tokens(row.get("output_tokens", OUTPUT_DEFAULT), "output_tokens", place)
    return replace(base, text=text, prompt_tokens=count_tokens(text), output_tokens=output)


def _read_sharegpt(rows: Iterable[str], name: str, count_tokens: CountTokens) -> Iterator[PlannedRequest]:
    try:
        entries = json.loads("".join(rows))
    except ValueError as error:
        raise WorkloadError(f"{name}: not valid JSON: {error}", hint=_HINT) from None
    for number, entry in enumerate(entries, start=1):
        turns = entry.get("conversations", entry.get("conversation")) if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise WorkloadError(f"{name}, entry {number}: there is no list 'conversations'", hint=_HINT)
        try:
            texts = [(str(turn["from"]), str(turn["value"])) for turn in turns[:2]]
        except (TypeError, KeyError):
            raise WorkloadError(f"{name}, entry {number}: each turn needs 'from' and 'value'", hint=_HINT) from None
        if len(texts) < 2 or texts[0][0] not in {"human", "user"} or not texts[0][1]:  # noqa: PLR2004 - a pair
            continue
        (_, prompt), (_, answer) = texts
        yield PlannedRequest(
            id=number, at_s=0.0, prompt_tokens=count_tokens(prompt), output_tokens=count_tokens(answer), text=prompt
        )


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise WorkloadError(f"{place}: not valid JSON: {error}", hint="mend the row, or leave it out") from None
    if not isinstance(row, dict):
        raise WorkloadError(f"{place}: a row must be a JSON object", hint=_HINT)
    return row


def _tokens(value: object, column: str, place: str) -> int:
    try:
        tokens = int(float(value))  # type: ignore[arg-type]  # anything else raises TypeError
    except (TypeError, ValueError, OverflowError):
        raise WorkloadError(
            f"{place}: {column!r} must be a number of tokens, not {value!r}", hint="mend the row, or leave it out"
        ) from None
    if not 1 <= tokens <= TOKENS_MAX:
        raise WorkloadError(
            f"{place}: {column!r} must lie in 1..{TOKENS_MAX:,}, not {tokens}", hint="mend the row, or leave it out"
        )
    return tokens


def _blocks(value: object, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(block, int) for block in value):
        raise WorkloadError(
            f"{place}: the ids of prefix blocks must be a list of whole numbers",
            hint="write [1, 2, 3], or leave it out",
        )
    return tuple(value)


def _instant(value: object, place: str, *, is_clock: bool) -> float:
    try:
        at = _clock(str(value)) if is_clock else float(value)  # type: ignore[arg-type]  # anything else raises TypeError
    except (TypeError, ValueError):
        wanted = "a date and time, such as 2023-11-16 18:15:46.68" if is_clock else "a number of seconds"
        raise WorkloadError(f"{place}: cannot read the time {value!r}", hint=f"give {wanted}") from None
    if not 0.0 <= at < float("inf"):
        raise WorkloadError(
            f"{place}: the time must not be negative or infinite, but is {value!r}",
            hint="times are seconds (`timestamp` of a Mooncake trace: milliseconds) from the start of the record",
        )
    return at


def _clock(text: str) -> float:
    """Return the seconds since year 0 of `2023-11-16 18:15:46.6805900` (an offset or Z at the end is dropped)."""
    day, _, clock = text.strip().replace("T", " ").partition(" ")
    year, month, date = (int(part) for part in day.split("-"))
    clock = clock.removesuffix("Z").partition("+")[0]
    hours, minutes, seconds = clock.split(":")
    if month <= 2:  # noqa: PLR2004 - the year begins in March, so that the leap day is its last
        year, month = year - 1, month + 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + date
    return days * 86_400.0 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
