"""The whole run: profile, forecast, measure strategy by strategy, decide; within the time that was given.

Whatever is measured is kept from the moment it exists, so that Ctrl-C at any point ends in a result from what there is.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from setpoint.cli.serve import load_engine
from setpoint.cli.step_times import save_step_time, step_time_key
from setpoint.cli.tuning.facts import machine_facts, model_facts
from setpoint.cli.tuning.measure import Stage, run_trial, scratch
from setpoint.cli.tuning.server import serving
from setpoint.cli.tuning.talk import Talk
from setpoint.engines.llamacpp.kv import KvPlan
from setpoint.errors import EngineError
from setpoint.loadgen.probe import learn_words
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget
from setpoint.model import Capacity, ServiceClass
from setpoint.planner.decide import choose
from setpoint.planner.demand import Demand, make_demand
from setpoint.planner.holding import holds
from setpoint.planner.point import OperatingPoint
from setpoint.planner.predict import Forecast, Options
from setpoint.planner.profile import Profile, Profiler
from setpoint.planner.result import Machine, Subject
from setpoint.planner.search import Time, floor_s, naive_rates, next_rate, stretched, window_s
from setpoint.planner.shortfall import smaller_types
from setpoint.planner.trial import Trial
from setpoint.seeds import stream
from setpoint.settings import EngineSettings
from setpoint.steptime.model import StepTimeModel
from setpoint.workload import AnyLengths

NAIVE = ("static", "dynamic")
BUDGETED = ("continuous", "priority")
BATCH = 8
"""The batch that the naive baselines wait for: larger ones would not fill in a trial of seconds."""
WINDOW_MAX_S = 120.0
CONVERTED_BYTES_MAX = 1 << 30
"""Larger weights would take minutes to convert."""
OTHER_PROFILE_S = 4.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants."""

    engine: EngineSettings
    classes: Mapping[str, ServiceClass]
    shares: Mapping[str, float]
    target: str
    strategies: tuple[str, ...]
    prompt: AnyLengths | None
    output: AnyLengths | None
    time: Time
    seed: int


class Found(msgspec.Struct, kw_only=True):
    """What has been found so far; filled in as the run goes on."""

    machine: Machine | None = None
    model: Subject | None = None
    capacity: Capacity | None = None
    kv: KvPlan | None = None
    threads: int = 0
    demand: Demand | None = None
    profile: Profile | None = None
    step_time_file: str | None = None
    bound_rps: float | None = None
    options: dict[str, Options] = {}
    predicted: dict[str, float | None] = {}
    trials: dict[str, list[Trial]] = {}
    prompts: tuple[int, int] = (1, 1)
    others: dict[str, StepTimeModel] = {}
    is_cut: bool = False
    failures: dict[str, str] = {}


class Tuner:
    """Runs the stages in order; `found` holds what there is at any time."""

    def __init__(self, asked: Asked, talk: Talk, load_before: float | None) -> None:
        self.found = Found()
        self._asked, self._talk, self._load_before = asked, talk, load_before

    def run(self) -> Found:
        """Run every stage; Ctrl-C ends the run and returns what was found before it."""
        try:
            forecast = self._profile()
            self._predict(forecast)
            self._measure()
            self._try_smaller_weights()
        except KeyboardInterrupt:
            self.found.is_cut = True
        return self.found

    # ------------------------------------------------------------------------------------------------------- profile

    def _profile(self) -> Forecast:
        asked, found, talk = self._asked, self.found, self._talk
        talk.doing("loading the model")
        slots = asked.engine.slots
        # a profile holds some sequences while it measures another, so that it needs two slots where one will do later
        wide = asked.engine if slots is None else msgspec.structs.replace(asked.engine, slots=max(2, slots))
        name, model, executor = load_engine(wide)
        with model, closing(executor):
            found.machine = machine_facts(executor, self._load_before)
            found.model = model_facts(executor, name)
            found.threads, found.kv = executor.threads, executor.kv
            found.capacity = msgspec.structs.replace(executor.capacity, slots=slots or executor.capacity.slots)
            found.demand = make_demand(
                asked.shares,
                target=asked.target,
                context_tokens=executor.capacity.context_tokens_max,
                prompt=asked.prompt,
                output=asked.output,
            )
            talk.doing("profiling steps")
            profiler = Profiler(executor, time.perf_counter, stream(asked.seed, "profile"), key=step_time_key(executor))
            found.profile = profiler.run(asked.time.profile_s, lambda _: talk.tick())
        profile = found.profile
        found.step_time_file = str(save_step_time(profile.model))
        talk.say(
            f"profile: {len(profile.samples)} shapes in {profile.rounds} rounds, {profile.seconds:.0f} s; "
            f"error on held-out shapes {profile.model.mape:.1%} on average, P95 {profile.p95_error:.1%}"
        )
        if profile.is_cut:
            raise KeyboardInterrupt
        found.prompts = _typical_prompts(found.demand, asked.seed)
        return Forecast(profile.model, found.capacity, found.demand, asked.classes, asked.seed)

    # ------------------------------------------------------------------------------------------------------ forecast

    def _predict(self, forecast: Forecast) -> None:
        asked, found = self._asked, self.found
        found.bound_rps = forecast.bound_rps
        for strategy in asked.strategies:
            self._talk.doing(f"simulating {strategy}")
            found.options[strategy] = {"batch": BATCH} if strategy in NAIVE else {}
            if strategy in NAIVE:
                found.predicted[strategy] = None
                continue
            requests = asked.time.forecast_requests
            highest = forecast.highest_rps(strategy, found.options[strategy], requests)
            if strategy in BUDGETED:
                budget = forecast.best_budget(strategy, highest or forecast.bound_rps / 4.0, requests)
                found.options[strategy] = {"token_budget": budget}
                highest = forecast.highest_rps(strategy, found.options[strategy], requests)
            found.predicted[strategy] = highest
            self._talk.tick()
        words = [f"{name} {rate:.2f}" for name, rate in found.predicted.items() if rate is not None]
        expected = f"{', '.join(words)} requests/s" if words else "no load meets the targets"
        self._talk.say(f"simulated: {expected}; no strategy can carry more than {found.bound_rps:.2f} requests/s")

    # ------------------------------------------------------------------------------------------------------- measure

    def _measure(self) -> None:
        asked, found = self._asked, self.found
        lexicon: Lexicon | None = None
        # the likely winner first: should time or patience run out, the most useful part is there; and the naive last,
        # whose server would keep the questions on how it counts tokens waiting for a batch
        order = sorted(asked.strategies, key=lambda name: (name in NAIVE, -(found.predicted[name] or 0.0)))
        with scratch() as folder:
            for position, strategy in enumerate(order):
                try:
                    lexicon = self._measure_on_server(strategy, folder, lexicon, order[position + 1 :])
                except EngineError as error:
                    # one strategy that fails must not cost the others what was measured of them
                    if not any(found.trials.values()) and position + 1 == len(order):
                        raise
                    found.failures[strategy] = error.message
                    self._talk.say(f"  {strategy:<11} not measured to the end: {error.message}")

    def _measure_on_server(self, strategy: str, folder: Path, lexicon: Lexicon | None, later: Sequence[str]) -> Lexicon:
        """Measure one strategy; return the words that the server counts as one token each, learned once a run."""
        self._talk.doing(f"{strategy}: starting the server")
        settings = self.point(strategy).settings(self._asked.classes, self._asked.target)
        with serving(settings, folder, self._talk.tick) as url:
            if lexicon is None:
                self._talk.doing("learning how the server counts tokens")
                lexicon = learn_words(EndpointTarget(url=url, engine="setpoint"))
            self._measure_strategy(strategy, url, lexicon, later)
        return lexicon

    def _measure_strategy(self, strategy: str, url: str, lexicon: Lexicon, later: Sequence[str]) -> None:
        asked, found = self._asked, self.found
        assert found.capacity is not None
        assert found.demand is not None
        stage = Stage(
            demand=found.demand,
            classes=asked.classes,
            lexicon=lexicon,
            slots=found.capacity.slots,
            seed=asked.seed,
        )
        trials = found.trials.setdefault(strategy, [])
        wanted = self._trials_wanted(strategy)
        waiting = sum(self._trials_wanted(name) for name in later)
        rates = iter(naive_rates(self._guess(strategy), wanted)) if strategy in NAIVE else None
        for index in range(wanted):
            rate = next(rates, None) if rates is not None else next_rate(trials, self._guess(strategy))
            left = asked.time.total_s - self._talk.elapsed_s
            window = min(WINDOW_MAX_S, window_s(left, wanted - index + waiting, len(later)))
            if rate is None or (trials and window < asked.time.window_min_s / 2.0):
                return
            least = floor_s(asked.time.window_min_s, rate)
            window = min(WINDOW_MAX_S, max(stretched(window, rate, wanted - index), least))
            self._talk.doing(f"{strategy}: {rate:.2f} requests/s for {window:.0f} s, trial {index + 1} of {wanted}")
            trial, is_cut = run_trial(
                stage,
                url,
                strategy=strategy,
                rate_rps=rate,
                window_s=window,
                draws=_draws(trials, rate),
                tick=self._talk.tick,
            )
            if trial is not None:
                trials.append(trial)
                self._talk.say(_line(trial))
            if is_cut:
                raise KeyboardInterrupt

    def _trials_wanted(self, strategy: str) -> int:
        return self._asked.time.trials_naive if strategy in NAIVE else self._asked.time.trials

    def _guess(self, strategy: str) -> float:
        """Return the rate to start from: as predicted, or as other strategies were predicted or measured."""
        found = self.found
        own = found.predicted.get(strategy)
        if own is not None:
            return own
        others = [rate for rate in found.predicted.values() if rate is not None]
        return max(others, default=(found.bound_rps or 1.0) / 3.0)

    def _try_smaller_weights(self) -> None:
        """Where no load met the targets, measure the steps of the same model in smaller types."""
        asked, found = self._asked, self.found
        choice = choose(found.trials)
        if choice is None or choice.is_met or found.model is None or found.model.weight_bytes > CONVERTED_BYTES_MAX:
            return
        for name in smaller_types(8.0 * found.model.weight_bytes / found.model.parameters):
            self._talk.doing(f"trying the weights as {name}")
            _, model, executor = load_engine(msgspec.structs.replace(asked.engine, quantize=name))
            with model, closing(executor):
                profiler = Profiler(executor, time.perf_counter, stream(asked.seed, name), key=step_time_key(executor))
                found.others[name] = profiler.run(OTHER_PROFILE_S, lambda _: self._talk.tick()).model

    def point(self, strategy: str) -> OperatingPoint:
        """Return the operating point at which `strategy` is measured."""
        found, engine = self.found, self._asked.engine
        assert found.capacity is not None
        assert found.kv is not None
        return OperatingPoint(
            strategy=strategy,
            options=found.options.get(strategy, {}),
            model=engine.model,
            slots=found.capacity.slots,
            context_tokens=found.capacity.context_tokens_max,
            kv_layout=found.kv.layout,
            kv_tokens=found.kv.room_tokens,
            step_tokens_max=found.capacity.step_tokens_max,
            threads=found.threads,
            quantize=engine.quantize,
        )


def _typical_prompts(demand: Demand, seed: int) -> tuple[int, int]:
    """Return the median and the 95th percentile of the prompts of the target class, from a thousand draws."""
    lengths = next(one.prompt for one in demand.traffic if one.class_name == demand.target)
    chance = stream(seed, "typical")
    drawn = sorted(lengths.draw(chance) for _ in range(1000))
    return drawn[500], drawn[950]


def _draws(trials: Sequence[Trial], rate: float) -> int:
    """Return which draws a trial gets: the same at every new rate, fresh ones when a rate is repeated."""
    return sum(1 for trial in trials if abs(trial.rate_rps - rate) < 1e-9)  # noqa: PLR2004 - rounding


def _line(trial: Trial) -> str:
    parts = []
    for one in trial.classes.values():
        attained = "" if one.attainment is None or one.scale is None else f", {one.attainment.value:.0%} in time"
        ttft = one.quantile("ttft", 0.95).value
        parts.append(
            f"{one.class_name} {one.requests} requests{attained}, P95 TTFT "
            + ("beyond measure" if ttft is None else f"{ttft * 1e3:.0f} ms")
        )
    mark = "invalid" if not trial.is_valid else "holds" if holds(trial) else "fails"
    fault = "" if trial.is_valid else f" ({trial.faults[0]})"
    return f"  {trial.strategy:<11} {trial.rate_rps:6.2f}/s  {mark:<7} {'; '.join(parts)}{fault}"
