"""The operating point: every knob value that `setpoint serve` needs to run as it was measured, and what it costs."""

from collections.abc import Mapping

import msgspec

from setpoint.model import ServiceClass
from setpoint.planner.trial import Trial
from setpoint.settings import EngineSettings, KvLayout, ServerSettings, Settings, StrategySettings

HOUR_S = 3600.0
MILLION = 1e6


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The knob values in force. `model`: `None` is the starter model; `quantize`: `None` is the file as it is."""

    strategy: str
    options: Mapping[str, float | bool | str]
    model: str | None
    slots: int
    context_tokens: int
    kv_layout: KvLayout
    kv_tokens: int
    step_tokens_max: int
    threads: int
    quantize: str | None = None

    def settings(self, classes: Mapping[str, ServiceClass], default_class: str) -> Settings:
        """Return the settings of a server at this point; requests that name no class are of `default_class`.

        Its step times are not named: the server finds those that were kept for its model and machine by itself.
        """
        engine = EngineSettings(
            model=self.model,
            slots=self.slots,
            context_tokens=self.context_tokens,
            kv_layout=self.kv_layout,
            kv_tokens=self.kv_tokens,
            step_tokens_max=self.step_tokens_max,
            threads=self.threads,
            quantize=self.quantize,
        )
        return Settings(
            server=ServerSettings(default_class=default_class),
            engine=engine,
            strategy=StrategySettings(name=self.strategy, options=self.options),
            classes=dict(classes),
        )


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica yields and costs at a load, money in the currency of the hourly price."""

    requests_per_hour: float
    output_tokens_per_hour: float
    total_tokens_per_hour: float
    price_per_hour: float
    per_million_output_tokens: float | None
    per_million_tokens: float | None
    per_thousand_requests: float | None


def bill(trial: Trial, price_per_hour: float) -> Bill:
    """Return what the replica yields at the load of `trial`, and what a million tokens cost then."""
    requests = trial.completed_rps * HOUR_S
    output = trial.output_tokens_per_s * HOUR_S
    total = output + trial.prompt_tokens_per_s * HOUR_S
    return Bill(
        requests_per_hour=requests,
        output_tokens_per_hour=output,
        total_tokens_per_hour=total,
        price_per_hour=price_per_hour,
        per_million_output_tokens=_per(price_per_hour, output, MILLION),
        per_million_tokens=_per(price_per_hour, total, MILLION),
        per_thousand_requests=_per(price_per_hour, requests, 1000.0),
    )


def _per(price: float, amount: float, unit: float) -> float | None:
    return price / amount * unit if amount > 0.0 else None
