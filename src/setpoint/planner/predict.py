"""What the simulator expects: the machine that will serve, on a virtual clock, with the step times just measured.

Predictions choose where to measure first and which token budget a baseline gets; they decide nothing. Each is reported
beside what was measured at the same load.
"""

from collections.abc import Mapping
from functools import partial

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import Option as StrategyOption
from setpoint.core.strategies import make_strategy
from setpoint.metrics import summarize
from setpoint.model import Capacity, ServiceClass, chunk_work
from setpoint.planner.demand import Demand
from setpoint.planner.holding import holds
from setpoint.planner.trial import Trial, make_trial
from setpoint.seeds import stream
from setpoint.sim.replica import ReplicaSimulator
from setpoint.sim.scenario import arrivals
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.workload import PlannedRequest, Steady, plan_traffic

Options = Mapping[str, StrategyOption]
BUDGETS = (64, 128, 256, 512)
_HALVINGS = 6


def plan_of(demand: Demand, rate_rps: float, seed: int, duration_s: float) -> list[PlannedRequest]:
    """Return the requests of `duration_s` seconds at `rate_rps`; neighbouring rates share their draws."""
    return plan_traffic(demand.traffic, Steady(rate_rps), partial(stream, seed), duration_s=duration_s)


class Forecast:
    """Predicts trials of one engine under one demand."""

    def __init__(
        self, model: StepTimeModel, capacity: Capacity, demand: Demand, classes: Mapping[str, ServiceClass], seed: int
    ) -> None:
        self._step_time = FixedStepTime(model)
        self._capacity, self._demand, self._classes, self._seed = capacity, demand, classes, seed

    @property
    def bound_rps(self) -> float:
        """The rate at which full steps would empty an unlimited backlog: no strategy can carry more for long."""
        slots = self._capacity.slots
        seconds = self._step_time.seconds
        prompt, output = self._demand.prompt_mean, self._demand.output_mean
        context = int(slots * (prompt + output / 2.0))
        step = seconds(slots, context)
        chunk = max(1, min(self._capacity.step_tokens_max - slots, int(4 * prompt)))
        prefill = (seconds(slots, context, chunk, chunk_work(0, chunk), 1) - step) / chunk
        return 1.0 / (output * step / slots + prompt * max(prefill, 1e-9))

    def trial(self, strategy: str, options: Options, rate_rps: float, requests: int) -> Trial:
        """Return the predicted trial of about `requests` requests at `rate_rps`."""
        window = requests / rate_rps
        plan = plan_of(self._demand, rate_rps, self._seed, window * 1.5)
        machine = ReplicaMachine(make_strategy(strategy, **options), self._classes, self._capacity, self._step_time)
        simulator = ReplicaSimulator(machine, self._step_time)
        records = sorted(simulator.run(arrivals(plan), until=window * 3.0), key=lambda record: record.scheduled_at)
        due = [record for record in records if record.scheduled_at < window]
        slos = {name: one.slo for name, one in self._classes.items()}
        summary = summarize(records, slos, window=(0.0, window))
        return make_trial(summary, due, self._classes, strategy=strategy, rate_rps=rate_rps, seed=self._seed)

    def highest_rps(self, strategy: str, options: Options, requests: int) -> float | None:
        """Return the highest rate that is predicted to hold, within some 3 %, or `None` when a low one fails too."""
        low, high = self.bound_rps / 32.0, self.bound_rps * 1.1
        if not holds(self.trial(strategy, options, low, requests)):
            return None
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(self.trial(strategy, options, middle, requests)) else (low, middle)
        return low

    def best_budget(self, strategy: str, rate_rps: float, requests: int) -> int:
        """Return the token budget of `BUDGETS` whose targets need the least loosening at `rate_rps`."""
        budgets = [n for n in BUDGETS if n <= self._capacity.step_tokens_max] or [self._capacity.step_tokens_max]
        scales = {n: self.trial(strategy, {"token_budget": n}, rate_rps, requests).scale for n in budgets}
        return min(budgets, key=lambda n: (scales[n], -n))
