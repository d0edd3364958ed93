"""What the machine is asked to carry: which classes in which shares, how long their prompts and answers are.

The lengths are short forms of each kind of work, so that a small machine sees enough requests within minutes. Chat is a
short question (two thirds of the mean of LMSYS-Chat-1M, 69.5 tokens with answers of 214.5; Zheng et al., arXiv
2309.11998), without the long tail of pasted text, and a short answer. All are clipped to the context.
"""

from collections.abc import Iterable, Mapping

import msgspec

from setpoint.errors import WorkloadError
from setpoint.workload import AnyLengths, Empirical, Fixed, LogNormal, Traffic, Uniform

SHARES_ERROR_MAX = 0.005

LENGTHS: dict[str, tuple[LogNormal, LogNormal]] = {
    "chat": (LogNormal(48.0, 0.5, 32, 4096), LogNormal(48.0, 0.6, 4, 1024)),
    "voice": (LogNormal(48.0, 0.6, 24, 2048), LogNormal(32.0, 0.6, 4, 256)),
    "code-completion": (LogNormal(256.0, 0.8, 32, 8192), LogNormal(16.0, 0.6, 2, 128)),
    "agent": (LogNormal(384.0, 0.8, 32, 8192), LogNormal(96.0, 0.8, 8, 1024)),
    "standard": (LogNormal(128.0, 0.8, 24, 8192), LogNormal(96.0, 0.6, 4, 1024)),
    "batch": (LogNormal(256.0, 0.6, 24, 8192), LogNormal(128.0, 0.6, 8, 2048)),
}
"""Prompt and answer of each preset, in tokens; any other class is taken as `standard`."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The mix to be carried; `target` is the class whose operating point is looked for (the largest judged share)."""

    target: str
    traffic: tuple[Traffic, ...]

    @property
    def shares(self) -> dict[str, float]:
        """The share of all arrivals of each class, adding up to 1."""
        whole = sum(one.share for one in self.traffic)
        return {one.class_name: one.share / whole for one in self.traffic}

    @property
    def prompt_mean(self) -> float:
        """Mean prompt tokens of a request."""
        return sum(share * self._of(name).prompt.mean for name, share in self.shares.items())

    @property
    def output_mean(self) -> float:
        """Mean output tokens of a request."""
        return sum(share * self._of(name).output.mean for name, share in self.shares.items())

    def _of(self, name: str) -> Traffic:
        return next(one for one in self.traffic if one.class_name == name)


def parse_mix(text: str, classes: Iterable[str]) -> dict[str, float]:
    """Return the shares that `text` names, such as `chat=0.7,batch=0.3`.

    Raises WorkloadError for an unknown class, a share that is no positive number, or shares that do not add up to 1.
    """
    known = sorted(classes)
    shares: dict[str, float] = {}
    hint = "write the shares of all arrivals, adding up to 1: --mix chat=0.7,batch=0.3"
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise WorkloadError(f"the mix names an unknown class {name!r}", hint=f"known are {', '.join(known)}")
        if name in shares:
            raise WorkloadError(f"the mix names {name} twice", hint=hint)
        try:
            shares[name] = float(value)
        except ValueError:
            raise WorkloadError(f"the share of {name} in the mix is no number: {value!r}", hint=hint) from None
        if not 0.0 < shares[name] <= 1.0:
            raise WorkloadError(f"the share of {name} in the mix must lie in 0..1, not {value}", hint=hint)
    if abs(sum(shares.values()) - 1.0) > SHARES_ERROR_MAX:
        raise WorkloadError(f"the shares of the mix add up to {sum(shares.values()):g}, not to 1", hint=hint)
    return shares


def make_demand(
    shares: Mapping[str, float],
    *,
    target: str,
    context_tokens: int,
    prompt: AnyLengths | None = None,
    output: AnyLengths | None = None,
) -> Demand:
    """Return the demand; `prompt` and `output` replace the lengths of the class `target`.

    Prompts are clipped to half of `context_tokens`, answers to a quarter. Raises WorkloadError when `target` has no
    share.
    """
    if target not in shares:
        raise WorkloadError(
            f"the target class {target} has no share in the mix",
            hint=f"add it, or choose --target {next(iter(shares))}",
        )
    traffic = []
    for name, share in shares.items():
        asked, answered = LENGTHS.get(name, LENGTHS["standard"])
        own = (prompt or asked, output or answered) if name == target else (asked, answered)
        prompts, outputs = clipped(own[0], context_tokens // 2), clipped(own[1], context_tokens // 4)
        traffic.append(Traffic(class_name=name, prompt=prompts, output=outputs, share=share))
    return Demand(target=target, traffic=tuple(traffic))


def clipped(lengths: AnyLengths, most: int) -> AnyLengths:
    """Return the distribution with its longest lengths cut to `most` tokens."""
    if isinstance(lengths, Fixed):
        return Fixed(min(lengths.tokens, most))
    if isinstance(lengths, Uniform):
        return Uniform(min(lengths.low, most), min(lengths.high, most))
    if isinstance(lengths, LogNormal):
        return msgspec.structs.replace(lengths, low=min(lengths.low, most), high=min(lengths.high, most))
    assert isinstance(lengths, Empirical)
    counts = (b - a for a, b in zip((0, *lengths.cumulative), lengths.cumulative, strict=False))
    pairs = zip(lengths.lengths, counts, strict=True)
    return Empirical.of(min(tokens, most) for tokens, count in pairs for _ in range(count))


def describe_lengths(lengths: AnyLengths) -> str:
    """Return the distribution in words."""
    if isinstance(lengths, Fixed):
        return f"{lengths.tokens} tokens"
    if isinstance(lengths, Uniform):
        return f"{lengths.low} to {lengths.high} tokens, uniform"
    if isinstance(lengths, LogNormal):
        return f"log-normal, mean {lengths.mean:g}, cv {lengths.cv:g}, {lengths.low} to {lengths.high} tokens"
    return f"as seen, mean {lengths.mean:.0f}, up to {max(lengths.lengths)} tokens"
