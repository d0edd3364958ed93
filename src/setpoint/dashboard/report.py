"""A report as one HTML file that needs nothing else: no script, no font, no image from elsewhere.

A report is a title, a verdict, a few figures, and sections of text, tables and SVG. Whoever reports fills these; how
they look is decided here once (`report.html`). All text is escaped; SVG alone is taken as it is.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

Mood = Literal["good", "warn", "bad"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its label, and a line on what it means."""

    label: str
    value: str
    detail: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table; the first column holds names, the others are set right. `strong` rows are emphasised."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[int, ...] = ()


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A heading and what stands under it, in the order text, points, chart, table, listing."""

    title: str
    text: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    svg: str = ""
    table: Table | None = None
    listing: str = ""
    is_folded: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report."""

    title: str
    subtitle: str
    verdict: str
    mood: Mood
    figures: tuple[Figure, ...]
    sections: Sequence[Section]
    footer: str


def render(report: Report) -> str:
    """Return the report as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only for who wants a report

    environment = Environment(
        loader=PackageLoader("setpoint.dashboard", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report)
