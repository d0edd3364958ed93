import xml.etree.ElementTree as ET

from setpoint.dashboard.chart import Panel, Series, Spot, draw
from setpoint.dashboard.report import Figure, Report, Section, Table, render

TABLE = Table(head=("a", "b"), rows=(("x", "1"), ("y", "2")), strong=(1,))


def panel(*series: Series, target: float | None = 200.0) -> Panel:
    return Panel(
        title="P95 TTFT",
        x_label="tokens per second",
        y_label="milliseconds",
        series=series,
        target=target,
        target_label="target 200 ms",
    )


def words(svg: str) -> list[str]:
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]  # noqa: S314 - ours


def test_a_chart_names_its_lines_its_target_and_the_chosen_point_in_text_that_can_be_read() -> None:
    slack = Series(
        name="slack",
        spots=(Spot(x=10.0, y=90.0, low=80.0, high=110.0), Spot(x=40.0, y=190.0, is_chosen=True, is_firm=False)),
        is_accented=True,
    )
    static = Series(name="static", spots=(Spot(x=30.0, y=4000.0),))
    found = words(draw([panel(slack, static)], caption="on this machine"))
    for word in ("slack", "static", "chosen", "target 200 ms", "P95 TTFT", "on this machine"):
        assert word in found


def test_the_same_values_give_the_same_bytes() -> None:
    one = panel(Series(name="slack", spots=(Spot(x=1.0, y=2.0), Spot(x=2.0, y=3.0))))
    assert draw([one]) == draw([one])


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    assert "P95 TTFT" in words(draw([panel(target=None)]))
    assert "P95 TTFT" in words(draw([panel(Series(name="empty", spots=()))]))


def test_a_report_escapes_what_it_is_told_and_needs_nothing_from_elsewhere() -> None:
    html = render(
        Report(
            title="Model <script>alert(1)</script>",
            subtitle="machine",
            verdict="5 < 6 & more",
            mood="good",
            figures=(Figure(label="load", value="3/s"),),
            sections=(
                Section(title="Chart", svg="<svg><path/></svg>"),
                Section(title="Table", table=TABLE, is_folded=True),
                Section(title="File", listing="[engine]\nslots = 4", points=("a point",), text=("a line",)),
            ),
            footer="setpoint",
        )
    )
    assert "<script" not in html
    assert "5 &lt; 6 &amp; more" in html
    assert "<svg><path/></svg>" in html
    assert html.count('<tr class="strong">') == 1
    assert "<details>" in html
    assert "slots = 4" in html
    for outside in ("src=", "href=", "@import", "url("):
        assert outside not in html
