"""What `policies.py` compares: the settings that are swept, what stands as published, `slack` with a part removed."""

from collections.abc import Mapping

from policy_runs import Policy
from policy_worlds import Workload

BUDGETS = (256, 384, 512, 1024)
PUBLISHED = Policy(label="qoserve, as published", strategy="qoserve")
SLACK = Policy(label="slack", strategy="slack")
ABLATIONS: Mapping[str, Mapping[str, float | bool | str]] = {
    "no relegation": {"relegation": "none"},
    "relegation of the late alone": {"relegation": "own-deadline"},
    "margins not controlled": {"is_controlled": False},
    "steps not sized": {"is_sized": False},
    "work at its bare cost": {"rate_blend": 0.0},
    "work at the rate achieved": {"rate_blend": 1.0},
}


def fixed(strategy: str) -> list[Policy]:
    """Return `strategy` with each of the fixed token budgets."""
    return [
        Policy(label=f"{strategy} {budget}", strategy=strategy, options={"token_budget": budget}) for budget in BUDGETS
    ]


def qoserves() -> list[Policy]:
    """Return `qoserve` with each factor and margin of the sweep."""
    return [
        Policy(
            label=f"qoserve {factor * 1000:g} ms x{margin:g}",
            strategy="qoserve",
            options={"factor_s": factor, "margin": margin},
        )
        for factor, margin in ((0.0, 1.0), (0.0002, 1.0), (0.001, 1.0), (0.008, 1.0), (0.0, 1.2), (0.001, 1.2))
    ]


def sweeps(workload: Workload) -> dict[str, list[Policy]]:
    """Return, for each row of the table whose best setting is chosen for the workload, the settings to try."""
    rows = {"continuous, best budget": fixed("continuous"), "srpf, best budget": fixed("srpf")[1:3]}
    if len(workload.flows) > 1:
        rows |= {"priority, best budget": fixed("priority"), "edf, best budget": fixed("edf")}
    return {**rows, "qoserve, best factor": [PUBLISHED, *qoserves()]}
