"""Evaluations of engines, kept between runs: by machine, engine build, model, workload and further arguments.

A run that was interrupted goes on where it stopped, and one with more time goes on from what a shorter one knew. What
another machine, build or workload gave is never taken.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.search import TrialResult
from setpoint.planner.engine_search import Evaluation
from setpoint.planner.knobs import Setting

FORMAT = 1


class Kept(msgspec.Struct, kw_only=True):
    """What is known of one engine under one workload; `checks` counts the times that a pick was checked."""

    key: str
    evaluations: list[Evaluation] = []
    trials: list[tuple[Setting, list[TrialResult]]] = []
    lexicon: Lexicon | None = None
    checks: int = 0
    format: int = FORMAT


def key_of(parts: Sequence[str]) -> str:
    """Return the key of what makes results comparable."""
    return " | ".join(parts)


def path_of(key: str) -> Path:
    """Return the file in which the evaluations of `key` are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "setpoint" / "engines" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load(key: str) -> Kept:
    """Return what is kept under `key`, empty when there is nothing that can be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(path_of(key).read_bytes(), type=Kept)
        if kept.key == key and kept.format == FORMAT:
            return kept
    return Kept(key=key)


def save(kept: Kept) -> None:
    """Write the file anew, whole or not at all; a disk that refuses costs the cache and nothing else."""
    path = path_of(kept.key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(kept))
        Path(file.name).replace(path)
