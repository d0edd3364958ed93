"""The highest rate at which each strategy keeps its promises, beside the bound: `slack` as it is, the others tuned.

    python benchmarks/policies.py               everything (some 20 processor-minutes, over all cores; see --keep)
    python benchmarks/policies.py --quick       two workloads, two seeds, within two minutes on 2 cores
    python benchmarks/policies.py --write DIR   also write policies.json and policies.md there

*Bound*: the rate at which the replica empties an unlimited backlog. Where every deadline is loose, any sane order
reaches it and no strategy can win; where deadlines are tight, the table says how much of it each one turns into work
in time. `continuous` and `priority` get their best token budget and `qoserve` its best factor and margin per workload,
swept on draws of their own; `slack` has one setting throughout. A fixed budget is that of `continuous` or `srpf`. Every
capacity is a mean over the seeds with half of its 95 % interval; the ratios have theirs too (`policy_ratios.py`).

Ratios (medians over the workloads that they name): `tight_over_best_fixed`, `tight_over_qoserve_published`,
`tight_over_qoserve_swept`: capacity of `slack` over that of the other where deadlines are tight; `tight_of_bound`:
`slack` over the bound on steady tight workloads at P95; `loose_of_best`: `slack` over the best strategy, or the bound
if that is less, where deadlines are loose (the worst workload); `past_bound_over_qoserve`: attainment of `slack` over
the best of any `qoserve` at 1.0 to 2 times the bound (the worst load).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType
from pathlib import Path
from statistics import fmean

import msgspec
from clairvoyant import relaxed_capacity
from policy_mixed import Beside, Overload, mixed
from policy_ratios import ratios
from policy_report import Estimate, estimate, markdown, tables
from policy_runs import Found, Job, Policy, bound, capacity
from policy_settings import ABLATIONS, PUBLISHED, SLACK, fixed, sweeps
from policy_worlds import BY_NAME, WORKLOADS, Workload
from reporting import machine, say

SWEEP_SHARE = 0.5
"""The sweeps that choose a setting take runs of this share of the requests."""
SWEEP_SEED = 0
"""The draws by which settings are chosen; the table shows others."""
QUICK = ("conv 1s 50ms 5%", "conv 2s 50ms 1%")
PARTS_OF = ("conv 1s 50ms 5%", "conv 2s 50ms 1%")
Key = tuple[str, str, int, str | None]
"""Workload, label of the policy, seed, and the one class that arrives, if not all."""


class Table(msgspec.Struct, kw_only=True):
    """All that was measured."""

    bounds: dict[str, float]
    capacities: dict[str, dict[str, Estimate]]
    settings: dict[str, dict[str, str]]
    clairvoyant: dict[str, float | None]
    silos: dict[str, float]
    beside: list[Beside] = []
    overload: list[Overload] = []


class Study:
    """Runs jobs over processes and remembers what was found."""

    def __init__(
        self, workloads: Sequence[Workload], seeds: int, count: int, workers: int, keep: Path | None = None
    ) -> None:
        """Study `workloads`; what was found before with the same `count` is read from `keep`, and added to it."""
        self.workloads = workloads
        self.seeds = range(1, seeds + 1)
        self.count = count
        self.bounds: dict[str, float] = {}
        self._workers = workers
        self._keep = keep
        self._kept: dict[str, float] = {}
        if keep is not None and keep.exists():
            self._kept = dict(json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines())
        self._found: dict[Key, float] = {}
        self._swept: dict[Key, float] = {}

    def run(self) -> Table:
        """Return the table of capacities."""
        lengths = sorted({w.lengths for w in self.workloads})
        with Pool(self._workers) as pool:
            self.bounds = dict(zip(lengths, pool.map(bound, lengths), strict=True))
            say(f"bounds: {self.bounds}")
            self._swept = self._capacities(pool, self._sweep_jobs())
            # one seed of everything before the next of anything, so that a study cut short has told something
            for seed in self.seeds:
                self._found |= self._capacities(pool, self._main_jobs(seed))
            relaxed = pool.starmap(
                relaxed_capacity, [(w.name, self.bounds[w.lengths], min(self.count, 1000)) for w in self.workloads]
            )
        table = Table(
            bounds=self.bounds,
            capacities={},
            settings={},
            clairvoyant=dict(zip((w.name for w in self.workloads), relaxed, strict=True)),
            silos={w.name: self._silo(w) for w in self.workloads if len(w.flows) > 1},
        )
        for workload in self.workloads:
            rows = {row: self._best(workload, policies) for row, policies in sweeps(workload).items()}
            table.settings[workload.name] = {row: policy.label for row, policy in rows.items()}
            chosen = [*rows.items(), (PUBLISHED.label, PUBLISHED), (SLACK.label, SLACK), *self._parts(workload)]
            table.capacities[workload.name] = {row: self._estimate(workload, policy) for row, policy in chosen}
        return table

    def _sweep_jobs(self) -> list[Job]:
        jobs = []
        for workload in self.workloads:
            for policies in sweeps(workload).values():
                jobs += [self._job(workload, policy, SWEEP_SEED) for policy in policies]
            jobs += [
                self._job(workload, policy, SWEEP_SEED, flow.service_class.name)
                for flow in workload.flows
                for policy in fixed("continuous")
                if len(workload.flows) > 1
            ]
        return jobs

    def _main_jobs(self, seed: int) -> list[Job]:
        jobs = []
        for workload in self.workloads:
            policies = {p.label: p for p in (self._best(workload, tried) for tried in sweeps(workload).values())}
            policies |= {p.label: p for p in (PUBLISHED, SLACK, *(part for _, part in self._parts(workload)))}
            jobs += [self._job(workload, policy, seed) for policy in policies.values()]
        return sorted(jobs, key=lambda job: BY_NAME[job.workload].runs)

    def _parts(self, workload: Workload) -> list[tuple[str, Policy]]:
        if workload.name not in PARTS_OF or len(self.seeds) < 3:
            return []
        return [
            (f"slack, {name}", Policy(label=f"slack, {name}", strategy="slack", options=options))
            for name, options in ABLATIONS.items()
        ]

    def _job(self, workload: Workload, policy: Policy, seed: int, only: str | None = None) -> Job:
        limit = self.bounds[workload.lengths]
        earlier = [self._found.get((workload.name, policy.label, one, only)) for one in range(1, seed)]
        known = [rate for rate in earlier if rate is not None]
        guess = (
            fmean(known) if known else self._swept.get((workload.name, policy.label, SWEEP_SEED, only), 0.75 * limit)
        )
        count = int(self.count * workload.runs * (SWEEP_SHARE if seed == SWEEP_SEED else 1.0))
        return Job(workload=workload.name, policy=policy, seed=seed, count=count, guess=guess, bound=limit, only=only)

    def _capacities(self, pool: "PoolType", jobs: Iterable[Job]) -> dict[Key, float]:
        """Return the capacity by (workload, label, seed, only), each job done once."""
        found: dict[Key, float] = {}
        todo: dict[Key, Job] = {}
        for job in jobs:
            kept = self._kept.get(self._name(job))
            if kept is None:
                todo[self._key(job)] = job
            else:
                found[self._key(job)] = kept
        started = time.monotonic()
        for number, one in enumerate(pool.imap_unordered(capacity, todo.values()), start=1):
            found[self._key(one.job)] = one.capacity
            self._remember(one)
            left = (time.monotonic() - started) / number * (len(todo) - number) / 60.0
            say(
                f"[{number}/{len(todo)}, {left:.0f} min left] {one.job.workload} | {one.job.policy.label} | "
                f"seed {one.job.seed}: {one.capacity / one.job.bound:.3f} of the bound"
            )
        return found

    def _remember(self, found: Found) -> None:
        if self._keep is not None:
            with self._keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps([self._name(found.job), found.capacity]) + "\n")

    @staticmethod
    def _name(job: Job) -> str:
        return f"{job.workload}|{job.policy.label}|{job.seed}|{job.only or ''}|{job.count}"

    @staticmethod
    def _key(job: Job) -> Key:
        return job.workload, job.policy.label, job.seed, job.only

    def _best(self, workload: Workload, policies: Sequence[Policy]) -> Policy:
        return max(policies, key=lambda p: self._swept[workload.name, p.label, SWEEP_SEED, None])

    def _estimate(self, workload: Workload, policy: Policy) -> Estimate:
        limit = self.bounds[workload.lengths]
        return estimate([self._found[workload.name, policy.label, seed, None] / limit for seed in self.seeds])

    def _silo(self, workload: Workload) -> float:
        """Return the capacity a replica of separate pools, with as many replicas for each class as suits it best."""
        needed = 0.0
        for flow in workload.flows:
            alone = [
                self._swept[workload.name, p.label, SWEEP_SEED, flow.service_class.name] for p in fixed("continuous")
            ]
            needed += flow.share / max(alone)
        whole = sum(flow.share for flow in workload.flows)
        return whole / needed / self.bounds[workload.lengths]


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description="Capacity of every strategy beside the bound.")
    parser.add_argument("--quick", action="store_true", help="two workloads and two seeds, within two minutes")
    parser.add_argument("--json", action="store_true", help="print one object on stdout")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="requests of a run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", action="append", metavar="TEXT", help="workloads whose name holds this")
    parser.add_argument("--keep", type=Path, help="file that remembers each capacity, so that a run cut short goes on")
    parser.add_argument("--write", type=Path, help="folder for policies.json and policies.md")
    args = parser.parse_args()
    names = QUICK if args.quick else tuple(w.name for w in WORKLOADS)
    if args.only:
        names = tuple(n for n in names if any(text in n for text in args.only))
    seeds, count = (2, 1200) if args.quick else (args.seeds, args.requests)
    study = Study([BY_NAME[name] for name in names], seeds, count, args.workers, args.keep)
    started = time.monotonic()
    table = study.run()
    if not args.quick and not args.only:
        table.beside, table.overload = mixed(table.bounds["conv"], seeds, count, args.workers)
    found = ratios(table)
    result = {
        "benchmark": "policies",
        "ratios": {name: ratio.value for name, ratio in found.items()},
        "tables": tables(table, found, seeds),
        "table": msgspec.to_builtins(table),
        "seeds": seeds,
        "requests": count,
        "machine": machine(),
        "command": sys.argv,
        "minutes": (time.monotonic() - started) / 60.0,
    }
    text = markdown(table, found, result)
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / "policies.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.write / "policies.md").write_text(text, encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n" if args.json else text)


if __name__ == "__main__":
    main()
