"""What engines reach of what the hardware could do: a few fitted numbers, with the error that they leave.

A base, and factors on it: for an engine (its overheads), for a hardware generation (the shares of its peaks), for a
precision (how near narrow arithmetic comes to its peak). Factors are shrunk towards 1 in the fit, so that an engine or
a generation that was never measured gets the base.
"""

import msgspec

FIELDS = (
    "mfu",
    "mbu",
    "kv_mbu",
    "attention_mfu",
    "expert_mfu",
    "hop_s",
    "link_share",
    "layer_s",
    "step_s",
    "sequence_s",
    "request_s",
    "stream_s",
)

SHARES = ("mfu", "mbu", "kv_mbu", "attention_mfu", "expert_mfu", "link_share")
"""The fields that are shares, at most 1; the others are seconds."""


class Efficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of peaks (0..1) and overheads in seconds.

    `mfu`: of the peak of arithmetic, in the matrices of the layers and the head; `expert_mfu`: the further factor of
    grouped expert matrices; `attention_mfu`: in prefill attention, of the 16-bit peak. `mbu`, `kv_mbu`: of the
    bandwidth, when weights, or the KV cache, are read. `link_share`: of the one-way link. `hop_s`: start of one
    collective. `layer_s`, `step_s`, `sequence_s`: fixed cost a layer, a step, and a sequence in a step.
    `request_s`: what a served request spends outside of steps before its first token (HTTP, tokens, hand-over).
    `stream_s`: what each sequence adds to a step when its tokens are streamed to a client.
    """

    mfu: float
    mbu: float
    kv_mbu: float
    attention_mfu: float
    expert_mfu: float
    hop_s: float
    link_share: float
    layer_s: float
    step_s: float
    sequence_s: float
    request_s: float
    stream_s: float


class ExpectedError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Median |ln(predicted / published)| on hardware that the fit never saw, and how many values that is over."""

    throughput: float
    tpot: float
    ttft: float
    values: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fitted base and factors, what they were fitted on and what error to expect."""

    base: Efficiency
    fitted_on: str
    expected_error: ExpectedError
    engines: dict[str, dict[str, float]] = {}
    generations: dict[str, dict[str, float]] = {}
    precisions: dict[str, dict[str, float]] = {}

    def of(self, *, engine: str = "", generation: str = "", precision: str = "") -> Efficiency:
        """Return the base with the factors of these three; a name that was never fitted changes nothing."""
        values = {field: getattr(self.base, field) for field in FIELDS}
        for table, name in ((self.engines, engine), (self.generations, generation), (self.precisions, precision)):
            for field, factor in table.get(name, {}).items():
                values[field] *= factor
        return Efficiency(**{f: min(1.0, v) if f in SHARES else v for f, v in values.items()})


def engine_key(engine: str, version: str = "") -> str:
    """Return the key under which an engine is calibrated: its family, and for vLLM its generation of scheduler.

    vLLM's V1 scheduler (0.8 and later) does much less work a step on the host than V0 did.
    """
    name = engine.lower()
    if "sglang" in name:
        return "sglang"
    if "llama.cpp" in name:
        return "llamacpp"
    if "tensorrt" in name or "nim" in name:
        return "trtllm"
    if "vllm" in name or "llmboost" in name:
        return "vllm-v0" if _minor(version) in range(8) else "vllm"
    return name


def _minor(version: str) -> int:
    """Return 7 for `0.7.3`; -1 when it is not a version 0.x."""
    parts = version.lower().removeprefix("vllm").strip().split(".")
    digits = "".join(c for c in parts[1] if c.isdigit()) if len(parts) > 1 and parts[0].strip() == "0" else ""
    return int(digits) if digits else -1
