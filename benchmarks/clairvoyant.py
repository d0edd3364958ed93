"""What a scheduler that knows all arrivals and lengths could do at best: a limit on large cases, exact on small ones.

*Relaxation.* Let x_i in 0..1 say whether request i is served in time. Its prefill must be done within [arrival, arrival
+ TTFT], and under a TPOT target its j-th further token within [arrival, arrival + TTFT + j x TPOT]. Each token costs at
least its arithmetic, and a request its attention, whatever the batch; so for every window [s, t] the work of the served
requests that lies inside cannot exceed t - s. Maximising the sum of x_i under these constraints (a linear program over
windows that begin at arrivals, in a geometric range of lengths) bounds the attainment of every policy from above. It
forgets that steps have a fixed cost and memory time: where arrivals are steady it says little more than the bound,
where they come in bursts it says how much of the loss no policy could avoid.

*Exact.* For a handful of requests of one token each, in steps of whole prompts: search over which set to compute next.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations

from policy_runs import WARM_UP
from policy_worlds import A100, BY_NAME, TOKEN_S, Workload, arrivals

from setpoint.model import chunk_work
from setpoint.sim.replica import Arrival

WINDOWS = 9
_PAIR_S = 4.0 * 32 * 4096 / 170e12


def relaxed_capacity(name: str, bound: float, count: int, seed: int = 1) -> float | None:
    """Return an upper limit on the capacity of any policy, as a share of `bound`; `None` where it is not defined.

    It needs a single class with a TTFT and a TPOT target, and SciPy.
    """
    workload = BY_NAME[name]
    slo = workload.flows[0].service_class.slo
    if len(workload.flows) > 1 or slo.ttft_s is None or slo.tpot_s is None:
        return None
    low, high = 0.1 * bound, 1.3 * bound
    while high > 1.02 * low:
        middle = (low * high) ** 0.5
        if relaxed_attainment(workload, middle, count, seed) >= 1.0 - workload.miss_max:
            low = middle
        else:
            high = middle
    return high / bound


def relaxed_attainment(workload: Workload, rate: float, count: int, seed: int) -> float:
    """Return the most of the requests after the warm-up that could be in time, by the linear program."""
    requests = list(arrivals(workload, rate, count, seed))
    first = next(i for i, a in enumerate(requests) if a.request.arrived_at > WARM_UP * requests[-1].request.arrived_at)
    slo = workload.flows[0].service_class.slo
    judged = requests[first:]
    return relaxed_in_time(judged, float(slo.ttft_s or 0.0), float(slo.tpot_s or 0.0)) / len(judged)


def relaxed_in_time(judged: Sequence[Arrival], ttft_s: float, tpot_s: float) -> float:
    """Return an upper limit on how many of the requests, in order of arrival, any policy can serve in time."""
    from scipy.optimize import linprog  # noqa: PLC0415 - this part alone needs it
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    limits: list[float] = []
    for begin in range(0, len(judged), 2):
        start = judged[begin].request.arrived_at
        for power in range(WINDOWS):
            length = ttft_s * 2.0**power
            column = begin
            while column < len(judged) and judged[column].request.arrived_at + ttft_s <= start + length:
                work = _work_inside(judged[column], start + length, ttft_s, tpot_s)
                rows.append(len(limits))
                columns.append(column)
                values.append(work / length)
                column += 1
            limits.append(1.0)
    matrix = csr_matrix((values, (rows, columns)), shape=(len(limits), len(judged)))
    found = linprog([-1.0] * len(judged), A_ub=matrix, b_ub=limits, bounds=(0.0, 1.0), method="highs")
    return float(-found.fun)


def _work_inside(arrival: Arrival, end: float, ttft_s: float, tpot_s: float) -> float:
    """Return the least seconds of a request's work that must be done by `end`, if it is to be in time."""
    request = arrival.request
    prompt = int(request.prompt_tokens)
    due = min(arrival.output_tokens - 1, int((end - request.arrived_at - ttft_s) / tpot_s))
    prefill_s = prompt * TOKEN_S + chunk_work(0, prompt) * _PAIR_S
    return prefill_s + due * (TOKEN_S + prompt * _PAIR_S)


def most_in_time(jobs: Sequence[tuple[float, float, int]]) -> int:
    """Return the largest number of `jobs` (arrival, deadline, prompt tokens) whose prompt can be done in time.

    Exact among schedules in which a step computes a set of whole prompts that have arrived; for up to some ten jobs.
    """
    world = A100()

    @cache
    def best(left: frozenset[int], now: float) -> int:
        here = [i for i in left if jobs[i][0] <= now and jobs[i][1] > now]
        later = [jobs[i][0] for i in left if jobs[i][0] > now]
        found = best(left, min(later)) if later else 0
        for size in range(1, len(here) + 1):
            for chosen in combinations(here, size):
                tokens = sum(jobs[i][2] for i in chosen)
                work = sum(chunk_work(0, jobs[i][2]) for i in chosen)
                end = now + world.seconds(0, 0, tokens, work, size)
                if all(end <= jobs[i][1] for i in chosen):
                    found = max(found, size + best(left - frozenset(chosen), end))
        return found

    return best(frozenset(range(len(jobs))), min(job[0] for job in jobs)) if jobs else 0
