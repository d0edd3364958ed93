"""What drawing tokens adds to a step: it must stay under a tenth at 32 sequences, however the tokens are drawn.

    python benchmarks/sampling_cost.py [--quick] [--json]

Decodes 32 sequences together with each way of sampling, in turn and several rounds, and compares the seconds of
sampling with those of the whole step. The prompts are English prose, for noise would give distributions as flat as no
text has. Each figure is the median of its rounds.

Ratios: `of_step_32`, the largest share of the step over all settings without a JSON schema; `of_step_32_greedy`, greedy
sampling; `of_step_32_json`, the largest over the settings whose output follows a JSON schema.
"""

from statistics import median

from embedded import Bench
from reporting import arguments, report, say

from setpoint.engines.api import Generation, Sampling
from setpoint.units import Tokens

WIDTH = 32
PROMPT_TOKENS = 64
SCHEMA = (
    '{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}}'
)
BOUNDED = (
    '{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 60}, '
    '"age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["name", "age"]}}'
)
TEXT = (
    "The harbour lay still in the early morning, and the fishermen were mending their nets. An old woman sold bread "
    "from a basket, and the children of the town ran on the quay to see which boats had come home in the night. Nobody "
    "spoke of the storm, although the broken mast of the largest ship leaned against the wall of the church. "
)
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "temperature": Sampling(temperature=0.8, seed=1),
    "top_p": Sampling(top_p=0.95, seed=1),
    "top_k": Sampling(top_k=40, seed=1),
    "min_p": Sampling(min_p=0.05, seed=1),
    "penalties": Sampling(repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2, seed=1),
    "logprobs": Sampling(logprobs=5, seed=1),
    "json": Sampling(json_schema=SCHEMA, seed=1),
    "json_top_p": Sampling(json_schema=SCHEMA, top_p=0.95, seed=1),
    "json_bounded": Sampling(json_schema=BOUNDED, seed=1),
    "json_bounded_top_p": Sampling(json_schema=BOUNDED, top_p=0.95, seed=1),
}


def run(bench: Bench, sampling: Sampling, steps: int) -> tuple[float, float]:
    """Return the median seconds of sampling and of the whole step, over `steps` steps of 32 decodes."""
    executor = bench.executor
    ids = list(range(WIDTH))
    text = bench.model.tokenize(TEXT * 4)
    for request_id in ids:
        generation = Generation(
            prompt=text[request_id : request_id + PROMPT_TOKENS],
            class_name="batch",
            output_tokens_max=Tokens(steps + 1),
            sampling=sampling,
        )
        executor.prepare(request_id, generation)
        executor.admit(request_id, request_id)
        executor.run([], [(request_id, PROMPT_TOKENS)])
    outputs = [executor.run(ids, []) for _ in range(steps)]
    for request_id in ids:
        executor.release(request_id)
    return median(o.sampling_s for o in outputs), median(o.forward_s + o.sampling_s for o in outputs)


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__ or "")
    rounds, steps = (1, 6) if args.quick else (5, 20)
    shares: dict[str, list[float]] = {name: [] for name in SETTINGS}
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with Bench(args, slots=WIDTH, kv_tokens=8192) as bench:
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for name, sampling in SETTINGS.items():
                sampling_s, step_s = run(bench, sampling, steps)
                seconds[name].append(sampling_s)
                shares[name].append(sampling_s / step_s)
        provider = bench.provider
    of_step = {name: median(values) for name, values in shares.items()}
    rows = [
        {"sampling": name, "ms_a_step": median(seconds[name]) * 1e3, "of_step": of_step[name], "engine": provider}
        for name in SETTINGS
    ]
    ratios: dict[str, float | None] = {
        "of_step_32": max(share for name, share in of_step.items() if SETTINGS[name].json_schema is None),
        "of_step_32_greedy": of_step["greedy"],
        "of_step_32_json": max(share for name, share in of_step.items() if SETTINGS[name].json_schema is not None),
    }
    report("sampling_cost", ratios, rows, args)


if __name__ == "__main__":
    main()
