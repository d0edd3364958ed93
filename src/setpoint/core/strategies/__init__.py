"""The strategies by name: one table, from which the shells choose."""

from collections.abc import Callable

import msgspec

from setpoint.core.state import Strategy
from setpoint.core.strategies.batching import Continuous, Static, by_band, by_deadline, by_work
from setpoint.core.strategies.options import SlackOptions
from setpoint.core.strategies.qoserve import QoServe
from setpoint.core.strategies.slack import Slack
from setpoint.errors import ConfigError

Option = float | bool | str


def _slack(**options: Option) -> Strategy:
    return Slack(msgspec.convert(options, SlackOptions))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "static": Static,
    "dynamic": lambda **o: Static("dynamic", **{"wait_s": 0.1, **o}),
    "continuous": Continuous,
    "priority": lambda **o: Continuous("priority", by_band, **o),
    "edf": lambda **o: Continuous("edf", by_deadline, **o),
    "srpf": lambda **o: Continuous("srpf", by_work, **o),
    "qoserve": QoServe,
    "slack": _slack,
}
"""Name to factory; the options of each are the keyword arguments of what it makes."""


def make_strategy(name: str, /, **options: Option) -> Strategy:
    """Return a new strategy; raises `ConfigError` for an unknown name or option."""
    factory = STRATEGIES.get(name)
    if factory is None:
        raise ConfigError(f"unknown strategy {name!r}", hint=f"choose one of {', '.join(STRATEGIES)}")
    try:
        return factory(**options)
    except (TypeError, msgspec.ValidationError, KeyError) as error:
        raise ConfigError(f"strategy {name!r}: {error}", hint="see docs/strategies for its options") from error
