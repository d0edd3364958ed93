"""`setpoint tune --engine`: starts somebody else's engine again and again, and finds the settings that hold most load.

Search (`planner.engine_search`), then a check of the pick against the defaults, in turns, on prompts and seeds that the
search never saw. Each evaluation is written to the cache as it ends, so that whatever interrupts the run costs only the
evaluation that was under way.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import msgspec

from setpoint.cli.tuning.engine_cache import Kept, load, save
from setpoint.cli.tuning.measure import scratch
from setpoint.cli.tuning.talk import Talk
from setpoint.engines.launch import HOST, Running, StartError, free_port, is_answering, launched
from setpoint.errors import EngineError
from setpoint.loadgen.crossing import Crossing
from setpoint.loadgen.experiment import MixSource, Setup
from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.search import TrialResult
from setpoint.loadgen.target import ClassTargets, EndpointTarget, Limits
from setpoint.model import ServiceClass
from setpoint.planner.demand import Demand
from setpoint.planner.engine_measure import USED_SHARE, Bench, Outcome, evaluate, held_of, objectives_of, search
from setpoint.planner.engine_memory import Room, why_not
from setpoint.planner.engine_result import words_of
from setpoint.planner.engine_search import SHARES, Evaluate, Evaluation, next_evaluation, pick
from setpoint.planner.knobs import DEFAULTS, Engine, Setting, command_of

CHECK_SHARE = 0.3
"""Of the whole time, for the check of the pick against the defaults."""
FIRST_MIN_S, FIRST_MAX_S, FIRST_SHARE = 15.0, 60.0, 1.0 / 40.0
BLOCK_MIN_S, STARTS_SHARE = 20.0, 0.4
FRESH_SEED, SEEDS_A_CHECK = 700_001, 5_003
HANG = Limits(answer_s=90.0, stall_s=45.0, total_s=300.0)


class EngineAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants.

    `extra`: arguments of every start; `start_limit_s`: until it must be ready. `is_grid`: every setting is measured
    once, however long that takes, and nothing is checked.
    """

    engine: Engine
    model: str
    extra: tuple[str, ...]
    classes: Mapping[str, ServiceClass]
    demand: Demand
    room: Room
    names: Mapping[str, str]
    total_s: float
    start_limit_s: float
    users: int
    seed: int
    key: str
    is_fresh: bool = False
    is_grid: bool = False

    def command(self, setting: Setting, port: int) -> list[str]:
        """Return the command that starts the engine with a setting."""
        names = {**self.names, "model": self.model, "host": HOST, "port": str(port), "setpoint": self.plugin_options()}
        return command_of(self.engine, setting, self.extra, names)

    def plugin_options(self) -> str:
        """Return the options of Setpoint's own scheduler inside vLLM: the classes with their targets."""
        told = {}
        for name in self.demand.shares:
            slo = self.classes[name].slo
            limits = {"ttft_ms": slo.ttft_s, "tpot_ms": slo.tpot_s}
            told[name] = {key: value * 1e3 for key, value in limits.items() if value is not None}
        return json.dumps({"setpoint": {"classes": told, "default_class": self.demand.target}})


class Checked(msgspec.Struct, kw_only=True):
    """What the check of one setting found."""

    trials: list[TrialResult]
    crossing: Crossing | None = None
    confirmed_rps: float | None = None


class EngineTuner:
    """Runs search and check; what was found is there at any time."""

    def __init__(self, ask: EngineAsk, talk: Talk) -> None:
        self.ask, self._talk = ask, talk
        self.kept = Kept(key=ask.key) if ask.is_fresh else load(ask.key)
        self.trials: dict[Setting, list[TrialResult]] = dict(self.kept.trials)
        self.checked: dict[Setting, Checked] = {}
        self.dropped: dict[Setting, str] = {}
        self.is_cut = False
        self._start_s: list[float] = []
        self._search_s = (1.0 - CHECK_SHARE) * ask.total_s
        shown = [one for name, one in ask.classes.items() if name in ask.demand.shares]
        self.bench = Bench(
            objectives=objectives_of(shown),
            users=ask.users,
            output_mean=ask.demand.output_mean,
            seed=ask.seed,
            tick=talk.tick,
        )

    @property
    def history(self) -> list[Evaluation]:
        """All evaluations, those of earlier runs first."""
        return self.kept.evaluations

    @property
    def pick(self) -> Setting:
        """The best setting so far."""
        return pick(self.history, self.ask.engine)

    def run(self) -> None:
        """Search, then check; Ctrl-C ends either. Raises EngineError when the defaults themselves do not run."""
        if self.history:
            self._talk.say(f"{len(self.history)} evaluations of earlier runs are known (--fresh forgets them)")
        with scratch() as folder:
            try:
                if self.ask.is_grid:
                    self._grid(folder)
                else:
                    self._search(folder)
                if self.pick != DEFAULTS and not self.ask.is_grid:
                    self._check(folder, self.pick)
            except KeyboardInterrupt:
                self.is_cut = True

    # --------------------------------------------------------------------------------------------------------- search

    def _search(self, folder: Path) -> None:
        ask = self.ask
        while True:
            step = next_evaluation(
                self.history, ask.engine, search_s=self._search_s, seed=ask.seed, is_possible=self._is_possible
            )
            if step is None:
                return
            self._one(step, folder)

    def _grid(self, folder: Path) -> None:
        """Measure every setting for as long as a finalist."""
        known = {one.setting for one in self.history}
        for setting in self.ask.engine.settings():
            if setting not in known and self._is_possible(setting):
                self._one(Evaluate(setting=setting, rung=len(SHARES) - 1), folder)

    def _is_possible(self, setting: Setting) -> bool:
        reason = why_not(self.ask.engine, setting, self.ask.room)
        if reason is not None:
            self.dropped[setting] = reason
        return reason is None

    def _one(self, step: Evaluate, folder: Path) -> None:
        """Carry out one evaluation, a first one no shorter than a start, and keep what it came to."""
        begun_at = time.monotonic()
        self._talk.doing(f"{words_of(step.setting)}: starting")
        before = self.trials.get(step.setting, [])
        try:
            with self._served(step.setting, folder) as (running, setup):
                first_s = max(FIRST_MIN_S, FIRST_SHARE * self._search_s, fmean(self._start_s))
                seconds = min(FIRST_MAX_S, first_s) * 2.0**step.rung
                self._talk.doing(f"{words_of(step.setting)}: measuring for about {seconds:.0f} s")
                outcome = self._survived(
                    running, evaluate(self.bench, setup, before, seconds=seconds, rival_rps=self._rival(step))
                )
        except StartError as error:
            outcome = Outcome(trials=before, how=error.how, words=error.message)
        if step.setting == DEFAULTS and outcome.how in {"crashed", "hung"}:
            raise EngineError(f"{self.ask.engine.engine} {outcome.how} as it is: {outcome.words}")
        self.trials[step.setting] = outcome.trials
        self.history.append(_evaluation(step, outcome, time.monotonic() - begun_at))
        self._keep()
        self._talk.say(_line(self.history[-1]))

    def _rival(self, step: Evaluate) -> float:
        """Return what another setting surely holds; the defaults are measured in any case."""
        lows = [one.low_rps or 0.0 for one in self.history if one.how == "measured"]
        return 0.0 if step.setting == DEFAULTS or self.ask.is_grid else max(lows, default=0.0)

    def _survived(self, running: Running, outcome: Outcome) -> Outcome:
        """Return the outcome, or that of a server which did not live through it."""
        if not running.is_alive:
            return Outcome(trials=outcome.trials, how="crashed", words=running.last_words())
        port = int(running.url.rpartition(":")[2])
        if outcome.how == "hung" or not is_answering(port, self.ask.engine.ready, 20.0):
            return Outcome(trials=outcome.trials, how="hung", words=outcome.words or "it no longer answers")
        return outcome

    @contextlib.contextmanager
    def _served(self, setting: Setting, folder: Path) -> Iterator[tuple[Running, Setup]]:
        """Start the engine with a setting, and yield it with what is needed to measure it."""
        ask, begun_at, port = self.ask, time.monotonic(), free_port()
        with launched(
            ask.command(setting, port),
            port,
            folder / f"{port}.log",
            ready=ask.engine.ready,
            limit_s=ask.start_limit_s,
            environment=ask.engine.environment,
            tick=self._talk.tick,
        ) as running:
            self._start_s.append(time.monotonic() - begun_at)
            try:
                target = identify(EndpointTarget(url=running.url, engine=ask.engine.kind, limits=HANG))
                if self.kept.lexicon is None:
                    self.kept.lexicon = learn_words(target)
            except EngineError as error:
                raise StartError("hung" if running.is_alive else "crashed", error.message) from error
            target = msgspec.structs.replace(target, classes=self._told(setting))
            yield running, self._setup(target, self.kept.lexicon)

    def _setup(self, target: EndpointTarget, lexicon: Lexicon) -> Setup:
        return Setup(
            target=target, source=MixSource(self.ask.demand.traffic), lexicon=lexicon, trial_s_min=5.0, trial_s_max=60.0
        )

    def _told(self, setting: Setting) -> dict[str, ClassTargets]:
        """Return what each request says of its class: to the schedulers that listen, and to no other."""
        scheduler, names = dict(setting).get("scheduler"), self.ask.demand.shares
        if scheduler == "setpoint":
            return {name: ClassTargets() for name in names}
        if scheduler == "priority":
            return {name: ClassTargets.of(one.slo, one.band) for name, one in self.ask.classes.items() if name in names}
        return {}

    def _keep(self) -> None:
        self.kept.trials = list(self.trials.items())
        save(self.kept)

    # ---------------------------------------------------------------------------------------------------------- check

    def _check(self, folder: Path, best: Setting) -> None:
        """Measure the defaults and the pick in turns, each with trials of its own, until the time is up."""
        self.kept.checks += 1
        left_s = max(self.ask.total_s - self._talk.elapsed_s, CHECK_SHARE * self.ask.total_s)
        start_s = max(self._start_s, default=10.0)
        order = [DEFAULTS, best, best, DEFAULTS] if 4.0 * start_s < STARTS_SHARE * left_s else [DEFAULTS, best]
        for place, setting in enumerate(order):
            is_last = setting not in order[place + 1 :]
            seconds = max(BLOCK_MIN_S, (left_s - start_s * len(order)) / len(order))
            self._talk.doing(f"checking {words_of(setting)} on fresh prompts, {place + 1} of {len(order)}")
            try:
                with self._served(setting, folder) as (running, setup):
                    self._block(setting, setup, seconds, is_last=is_last)
                    running.require_alive()
            except StartError as error:
                self._talk.say(f"  {words_of(setting)} {error.how} during the check: {error.message}")
                return

    def _block(self, setting: Setting, setup: Setup, seconds: float, *, is_last: bool) -> None:
        closed = [one for one in self.trials.get(setting, []) if one.trial.kind == "closed" and one.is_valid]
        if len(closed) < 2 or not _is_open(self.history, setting):  # noqa: PLR2004 - one user, and the busiest load
            return
        checked = self.checked.setdefault(setting, Checked(trials=closed))
        setup.e2e_s = closed[0].mean_e2e_s or setup.e2e_s
        spent = sum(one.spent_s for one in checked.trials if one.is_valid)
        seed = self.ask.seed + FRESH_SEED + SEEDS_A_CHECK * self.kept.checks
        budget_s = spent + seconds if is_last else (spent + seconds) / USED_SHARE
        settings = self.bench.settings(budget_s, seed=seed, is_confirmed=is_last)
        outcome, answer = search(self.bench, setup, checked.trials, settings)
        checked.trials, checked.confirmed_rps = outcome.trials, answer.rate
        checked.crossing = held_of(checked.trials, settings)
        if checked.crossing is not None:
            rates = ", ".join(f"{checked.crossing.at(p):.2f}" for p in (0.05, 0.5, 0.95))
            self._talk.say(f"  check       {words_of(setting)}: {rates} requests/s (5%, median, 95%)")


def _is_open(history: list[Evaluation], setting: Setting) -> bool:
    """Tell whether the setting held any load in the search, so that there is something to check."""
    return any(one.setting == setting and one.low_rps is not None for one in history)


def _evaluation(step: Evaluate, outcome: Outcome, seconds: float) -> Evaluation:
    return Evaluation(
        setting=step.setting,
        rung=step.rung,
        seconds=seconds,
        how=outcome.how,
        score_rps=outcome.score_rps,
        low_rps=outcome.low_rps,
        high_rps=outcome.high_rps,
        words=outcome.words,
    )


def _line(one: Evaluation) -> str:
    rate = ""
    if one.low_rps is not None:
        rate = f"{one.score_rps:.2f}/s ({one.low_rps:.2f} to {one.high_rps or 0.0:.2f})"
    elif one.how == "measured":
        rate = "holds nothing"
    words = f": {one.words}" if one.words else ""
    return f"  {one.how:<9} {rate:<24} {words_of(one.setting)}{words} [{one.seconds:.0f} s]"
