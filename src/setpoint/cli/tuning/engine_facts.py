"""What tuning an engine needs to know of this machine, the engine and the model, before anything is started."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec

from setpoint.cli.step_times import processor_name
from setpoint.errors import ConfigError, ModelError
from setpoint.planner.engine_memory import Room
from setpoint.planner.knobs import Engine
from setpoint.sim.model_header import is_model_path, read_architecture

VERSION_LIMIT_S = 180.0
_WHEEL = ("-m", "setpoint.engines.llamacpp.server")
_WEIGHTS = ("*.safetensors", "*.bin")


def with_command(engine: Engine, command: str | None) -> Engine:
    """Return the engine with the command that runs here: the one given, the one on the path, or that of the wheel.

    Raises ConfigError when there is none.
    """
    first = command or engine.command[0]
    found = shutil.which(first)
    if found is not None:
        return msgspec.structs.replace(engine, command=(found if command else first, *engine.command[1:]))
    if command is None and engine.engine == "llama-server" and find_spec("xllamacpp") is not None:
        return msgspec.structs.replace(engine, command=(sys.executable, *_WHEEL))
    raise ConfigError(f"there is no command {first!r}", hint="install the engine, or name its command with --command")


def build_of(engine: Engine) -> str:
    """Return what the engine says of its version, or a word for one that says nothing."""
    if not engine.version_args:
        return "unknown build"
    try:
        run = subprocess.run(  # noqa: S603 - the engine that the user asked for
            [*engine.command, *engine.version_args],
            capture_output=True,
            text=True,
            timeout=VERSION_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown build"
    lines = [line.strip() for line in (run.stdout or run.stderr).splitlines() if line.strip()]
    return next((line for line in lines if any(c.isdigit() for c in line)), "unknown build")[:200]


def has_gpu() -> bool:
    """Tell whether there is an NVIDIA or an AMD GPU."""
    return Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def machine_name() -> str:
    """Return the machine in words."""
    gpu = "".join(f", {line}" for line in _gpu_lines()[:1])
    return f"{processor_name()}, {cores()} cores{gpu}"


def room_of(model: str, context_tokens: int) -> Room:
    """Return the memory that there is and what the model takes of it, so far as both can be told."""
    architecture = None
    if is_model_path(model):
        try:
            architecture = read_architecture(model)
        except ModelError:
            architecture = None
    return Room(
        memory_bytes=_memory_bytes(),
        weight_bytes=_weight_bytes(Path(model)),
        architecture=architecture,
        context_tokens=context_tokens,
    )


def model_identity(model: str) -> str:
    """Return what tells two models apart: the name, with size and time of change where it is a file or a folder."""
    path = Path(model)
    if not path.exists():
        return model
    return f"{path.resolve().name} {_weight_bytes(path):.0f} bytes {path.stat().st_mtime_ns}"


def _weight_bytes(path: Path) -> float:
    if path.is_file():
        return float(path.stat().st_size)
    for pattern in _WEIGHTS if path.is_dir() else ():
        size = sum(file.stat().st_size for file in path.glob(pattern))
        if size:
            return float(size)
    return 0.0


def _memory_bytes() -> float | None:
    lines = _gpu_lines()
    if lines:
        numbers = [line.rpartition(",")[2].strip().split(" ")[0] for line in lines]
        return sum(float(number) * 2**20 for number in numbers if number.isdigit()) or None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024.0
    except OSError:
        return None
    return None


def _gpu_lines() -> list[str]:
    """Return a line for each NVIDIA GPU, with its name and memory."""
    command = shutil.which("nvidia-smi")
    if command is None or not has_gpu():
        return []
    try:
        run = subprocess.run(  # noqa: S603 - found on the path
            [command, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()]
