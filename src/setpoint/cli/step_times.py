"""Step-time models that were fitted on this machine, kept between runs: `setpoint tune` writes, `setpoint serve` reads.

A model is known by its key: which weights, on which processor with how many threads, run by which build of the engine.
Another key is another model; nothing is ever taken for what it is not.
"""

import hashlib
import platform
import re
import tempfile
from pathlib import Path

from setpoint.cache import cache_dir
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.errors import ConfigError
from setpoint.steptime.model import StepTimeModel, decode, encode


def processor_name() -> str:
    """Return the name of the processor as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def step_time_key(executor: LlamaExecutor) -> str:
    """Return the key (model, hardware, engine build) of what `executor` runs."""
    model = executor.model
    native = model.native
    return " | ".join(
        (
            f"{model.path.stem} {model.info.weight_bytes} bytes",
            f"{processor_name()} x {executor.threads} threads",
            f"{native.provider} {native.version}, KV {executor.kv.layout}",
        )
    )


def step_time_path(key: str) -> Path:
    """Return the file in which the model of `key` is kept."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-")[:100]
    return cache_dir("steptime") / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"


def load_step_time(key: str) -> StepTimeModel | None:
    """Return the model kept for `key`, or `None` when there is none that can be read."""
    try:
        model = decode(step_time_path(key).read_bytes())
    except (OSError, ConfigError):
        return None
    return model if model.key == key else None


def save_step_time(model: StepTimeModel) -> Path:
    """Keep a fitted model under its key and return the file; raises ConfigError when it cannot be written."""
    path = step_time_path(model.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(encode(model))
        Path(file.name).replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the step times in {path.parent}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return path
