"""The files of a result: `result.json`, `setpoint.toml`, `curve.svg`, `report.html`."""

import textwrap
from pathlib import Path

import tomli_w
from msgspec.structs import replace

from setpoint.cli.tuning.page import make_report, panels
from setpoint.cli.tuning.run import Asked
from setpoint.cli.tuning.words import main_target, targets_of, verdict
from setpoint.dashboard.chart import draw
from setpoint.dashboard.report import render
from setpoint.errors import ConfigError
from setpoint.planner.result import Tuning, encode
from setpoint.planner.trial import scaled
from setpoint.settings import settings_table


def write_outputs(result: Tuning, asked: Asked, folder: Path) -> list[Path]:
    """Write all files into `folder` and return them; raises ConfigError when that is not possible.

    Without a recommendation there is no `setpoint.toml`, and an older one is left as it is.
    """
    svg = draw(
        panels(result),
        caption=f"{result.model.name}, {result.machine.processor}, {result.machine.cores} cores, {result.started_at}",
    )
    toml = settings_text(result, asked)
    texts = {
        "result.json": encode(result).decode() + "\n",
        "curve.svg": '<?xml version="1.0" encoding="utf-8"?>\n' + svg,
        "report.html": render(make_report(result, svg, toml or "")),
    }
    if toml is not None:
        texts["setpoint.toml"] = toml
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}", hint="choose another with --out") from error
    return [folder / name for name in texts]


def settings_text(result: Tuning, asked: Asked) -> str | None:
    """Return the `setpoint.toml` of the chosen point, or `None` when nothing was chosen.

    Where only looser targets held, the file holds those: a promise that is kept beats one that is not.
    """
    if result.point is None or result.choice is None:
        return None
    classes = dict(asked.classes)
    if not result.choice.is_met:
        promised = classes[result.target]
        classes[result.target] = replace(promised, slo=scaled(promised.slo, result.choice.factor))
    settings = result.point.settings(classes, result.target)
    target = main_target(result)
    promise = "" if target is None else targets_of(target, result.choice.factor)
    head = [
        *(f"# {line}" for line in textwrap.wrap(verdict(result), 100)),
        f"# Measured {result.started_at} by setpoint {result.version}:",
        f"#   {result.command}",
        f"# {result.model.file}, {result.machine.processor}, {result.machine.cores} cores, {result.machine.engine}",
        f"# The class {result.target} is promised {promise}.",
        "# Serve it: setpoint serve --config setpoint.toml",
        "",
    ]
    return "\n".join(head) + "\n" + tomli_w.dumps(settings_table(settings))
