"""vLLM on the CPU, profiled over HTTP, and its six loads predicted with its scheduler modelled by `continuous`.

`SETPOINT_VLLM_COMMAND` is the command, `SETPOINT_VLLM_MODEL` the folder of the model. Each load is offered by the
measuring client from a process of its own; the prediction knows vLLM by the profile and by the flags that it was
started with.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

import msgspec
from fidelity_loads import CLASSES, LOADS, Row, compared, plan_of
from reporting import say
from stillness import Stillness
from vllm_server import Setting, server

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.model import Capacity
from setpoint.planner.endpoint import Limits, Outcome, carry_over_http, profile
from setpoint.seeds import stream
from setpoint.sim.jitter import JitteredStepTime
from setpoint.sim.scenario import Scenario, simulate
from setpoint.steptime.learner import FixedStepTime
from setpoint.units import Blocks, Tokens
from setpoint.workload import PlannedRequest

SLOTS, BUDGET, BLOCK, CONTEXT = 16, 512, 16, 2048
KV_TOKENS = 40_000
STILL_MAX_S = 1.0
TRIES = 3


def vllm(args: argparse.Namespace, rows: list[Row], words: list[str]) -> None:
    """Profile, predict and run each load; `rows` and `words` (what is to be said) grow with each."""
    model_path = os.environ.get("SETPOINT_VLLM_MODEL")
    if not model_path:
        sys.exit("SETPOINT_VLLM_MODEL: name the folder of a model that vLLM can read")
    given = argparse.Namespace(vllm=os.environ["SETPOINT_VLLM_COMMAND"], model=model_path)
    flags = ("--max-num-batched-tokens", str(BUDGET))
    seconds = args.seconds or (10.0 if args.quick else 120.0)
    say("starting vLLM")
    with server(given, Setting("stock", flags)) as url:
        target = identify(EndpointTarget(url=url, engine="vllm", api="completions"))
        lexicon = learn_words(target)
        over_at = time.monotonic() + (20.0 if args.quick else 150.0)
        found = profile(
            Limits(slots=SLOTS, prompt_max=1024, context_tokens=CONTEXT),
            carry_over_http(target, lexicon),
            stream(args.seed, "profile"),
            key="vllm over HTTP",
            is_over=lambda: time.monotonic() > over_at,
            on_load=lambda load: say(f"profiling: {load.words()}"),
        )
        word = f"off by {found.model.mape:.1%} a step, tail ratio {found.model.tail_ratio:.2f}"
        words.append(f"profile of vLLM over HTTP: {word}, {1e3 * found.outside_s:.1f} ms of a request outside of steps")
        scenario = scenario_of(found)
        for load in LOADS:
            plan, rate = plan_of(load, scenario, seconds, args.seed)
            world = JitteredStepTime(found.model, stream(args.seed, "jitter"))
            expected = simulate(msgspec.structs.replace(scenario, world=world), plan).records
            say(f"vLLM, {load.name}: {len(plan)} requests at {rate:.2f}/s")
            records = _measured(target, lexicon, plan, 1000 * args.seed + len(rows), load.name)
            if records is None:
                words.append(f"vLLM, {load.name}: the machine stood still during the run, which does not count")
            else:
                rows += compared("vllm", load.name, records, expected)


def scenario_of(found: Outcome) -> Scenario:
    """Return vLLM as the simulator takes it: its profile, and the flags that it was started with."""
    return Scenario(
        world=FixedStepTime(found.model),
        capacity=Capacity(
            slots=SLOTS,
            kv_blocks=Blocks(KV_TOKENS // BLOCK),
            block_tokens=Tokens(BLOCK),
            step_tokens_max=Tokens(BUDGET),
            context_tokens_max=Tokens(CONTEXT),
        ),
        classes=CLASSES,
        strategy="continuous",
        options={"token_budget": BUDGET},
        request_s=found.outside_s,
        drain_s=1e6,
    )


def _measured(
    target: EndpointTarget, lexicon: Lexicon, plan: Sequence[PlannedRequest], seed: int, name: str
) -> list[RequestRecord] | None:
    """Return the records of a run in which the machine never stood still, or `None`."""
    for attempt in range(TRIES):
        options = RunOptions(connections=SLOTS, seed=seed + 100_000 * attempt)
        with Stillness() as still:
            records = measure_in_process(target, plan, options, lexicon=lexicon, warmup_s=0.0).records
        if still.longest_s <= STILL_MAX_S:
            return records
        say(f"{name}: the machine stood still for {still.longest_s:.1f} s")
    return None
