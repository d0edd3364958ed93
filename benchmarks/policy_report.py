"""How `policies.py` says what it found: means with intervals over the seeds, and tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import msgspec

from setpoint.metrics.binomial import student_t_quantile

if TYPE_CHECKING:
    from policies import Table
    from policy_ratios import Ratio


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over seeds, with half the width of its 95 % interval (Student's t)."""

    mean: float
    half: float
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """Return the estimate from one value a seed."""
    half = 0.0
    if len(values) > 1:
        half = student_t_quantile(0.975, len(values) - 1) * stdev(values) / sqrt(len(values))
    return Estimate(mean=fmean(values), half=half, values=tuple(values))


def markdown(table: "Table", ratios: Mapping[str, "Ratio"], result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = ["# Strategies side by side", ""]
    lines += [f"`{' '.join(result['command'])}`; {result['seeds']} seeds of {result['requests']:,} requests;"]
    lines += [f"{result['minutes']:.0f} minutes; {result['machine']}.", "", *_capacities(table)]
    if table.beside:
        lines += ["", *_beside(table)]
    if table.overload:
        lines += ["", *_overload(table)]
    lines += ["", "## Ratios", "", *_head(["ratio", "value", "over the workloads or loads"])]
    lines += [_row(row.values()) for row in _ratios(ratios)]
    return "\n".join(lines) + "\n"


def _capacities(table: "Table") -> list[str]:
    lines = ["## Capacity as a share of the bound", ""]
    lines += [f"Bound: {', '.join(f'{name} {rate:.2f} requests/s' for name, rate in table.bounds.items())}.", ""]
    rows = list(dict.fromkeys(row for found in table.capacities.values() for row in found))
    main = [row for row in rows if not row.startswith("slack, ")]
    lines += _head(["workload", *main, "silo", "clairvoyant, at most"])
    for name, found in table.capacities.items():
        cells = [_cell(found.get(row), table.settings[name].get(row)) for row in main]
        silo = table.silos.get(name)
        relaxed = table.clairvoyant.get(name)
        lines.append(_row([name, *cells, _figure(silo), _figure(relaxed)]))
    parts = [row for row in rows if row.startswith("slack, ")]
    if parts:
        lines += ["", "### slack with one part removed", "", *_head(["workload", "slack", *parts])]
        for name, found in table.capacities.items():
            if any(part in found for part in parts):
                lines.append(_row([name, _cell(found["slack"]), *(_cell(found.get(part)) for part in parts)]))
    return lines


def _beside(table: "Table") -> list[str]:
    loads = sorted({b.load for b in table.beside})
    lines = ["## Chat (TTFT 1 s, TPOT 50 ms, 5 %) beside an unlimited backlog", ""]
    lines += ["Attainment of the chat class / batch tokens a second, at chat loads as a share of the bound.", ""]
    lines += _head(["policy", *(f"{load:g}" for load in loads)])
    for policy in dict.fromkeys(b.policy for b in table.beside):
        cells = []
        for load in loads:
            found = [b for b in table.beside if b.policy == policy and b.load == load]
            cells.append(
                f"{fmean(b.attainment for b in found):.3f} / {fmean(b.batch_tokens_per_s for b in found):,.0f}"
            )
        lines.append(_row([policy, *cells]))
    return lines


def _overload(table: "Table") -> list[str]:
    loads = sorted({o.load for o in table.overload})
    lines = ["## Attainment past the bound (chat, TTFT 2 s, TPOT 50 ms)", ""]
    lines += ["All requests / the quartile of the longest prompts.", "", *_head(["policy", *(f"{x:g}" for x in loads)])]
    for policy in dict.fromkeys(o.policy for o in table.overload):
        cells = []
        for load in loads:
            found = [o for o in table.overload if o.policy == policy and o.load == load]
            cells.append(f"{fmean(o.attainment for o in found):.3f} / {fmean(o.longest for o in found):.2f}")
        lines.append(_row([policy, *cells]))
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: Estimate | None, setting: str | None = None) -> str:
    if found is None:
        return "-"
    which = "" if setting is None else f" ({setting.split(maxsplit=1)[1] if ' ' in setting else setting})"
    return f"{found.mean:.3f} ± {found.half:.3f}{which}"


def _ratios(ratios: Mapping[str, "Ratio"]) -> list[dict[str, str]]:
    """Return each ratio with its interval, and its least and most."""
    rows = []
    for name, ratio in ratios.items():
        half = "" if ratio.half is None else f" ± {ratio.half:.3f}"
        spread = "-" if ratio.range is None else f"{ratio.range[0]:.3f} to {ratio.range[1]:.3f}"
        rows.append(
            {
                "ratio": f"`{name}`",
                "value": _figure(ratio.value) + half,
                "over the workloads or loads": spread,
            }
        )
    return rows


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def tables(table: "Table", ratios: Mapping[str, "Ratio"], seeds: int) -> list[dict[str, Any]]:
    """Return the same tables as titles and rows, as `results.py` keeps them."""
    found: list[dict[str, Any]] = [{"title": "Ratios", "rows": _ratios(ratios)}]
    whole = (
        "Capacity as a share of the bound (the rate at which the replica empties an unlimited backlog: "
        f"{', '.join(f'{name} {rate:.2f}/s' for name, rate in table.bounds.items())}); mean of {seeds} seeds, plus or "
        "minus half of its 95 % interval; in brackets the setting that was best on draws of its own. `slack` and "
        "`qoserve, as published` are not tuned"
    )
    for is_part, title in ((False, whole), (True, "slack with one part removed")):
        rows = [_capacity_row(table, name, is_part=is_part) for name in table.capacities]
        found.append({"title": title, "rows": [row for row in rows if len(row) > _NAMES]})
    beside: dict[str, dict[str, str]] = {}
    for policy, load in dict.fromkeys((b.policy, b.load) for b in table.beside):
        runs = [b for b in table.beside if (b.policy, b.load) == (policy, load)]
        met = _cell(estimate([b.attainment for b in runs]))
        row = beside.setdefault(policy, {"policy": policy})
        row[f"at {load:g}"] = f"{met}; {fmean(b.batch_tokens_per_s for b in runs):,.0f} tokens/s"
    title = "Chat (TTFT 1 s, TPOT 50 ms) beside an unlimited backlog: attainment and batch work, by load over the bound"
    found.append({"title": title, "rows": list(beside.values())})
    past: dict[str, dict[str, str]] = {}
    for policy, load in dict.fromkeys((o.policy, o.load) for o in table.overload):
        ends = [o for o in table.overload if (o.policy, o.load) == (policy, load)]
        row = past.setdefault(policy, {"policy": policy})
        longest = fmean(o.longest for o in ends)
        row[f"at {load:g}"] = f"{_cell(estimate([o.attainment for o in ends]))}; longest quarter {longest:.2f}"
    found.append({"title": "Chat (TTFT 2 s, TPOT 50 ms) past the bound: attainment", "rows": list(past.values())})
    return [one for one in found if one["rows"]]


_NAMES = 2
"""The cells of a row that say what it is: the workload, and `slack` beside its parts."""


def _capacity_row(table: "Table", name: str, *, is_part: bool) -> dict[str, str]:
    cells = table.capacities[name]
    row = {"workload": name} | ({"slack": _cell(cells["slack"])} if is_part else {})
    for key, value in cells.items():
        if key.startswith("slack, ") == is_part:
            row[key] = _cell(value, table.settings[name].get(key))
    if not is_part:
        row |= {"silo": _figure(table.silos.get(name)), "clairvoyant, at most": _figure(table.clairvoyant.get(name))}
    return row
