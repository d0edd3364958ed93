"""Facts about where and with what something is measured: the machine, the version, the commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from setpoint.cli.step_times import processor_name
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.planner.result import Machine, Subject


def machine_facts(executor: LlamaExecutor, load_before: float | None) -> Machine:
    """Return what this machine is; `load_before`: the load average before the run began."""
    native = executor.model.native
    return Machine(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        engine=f"llama.cpp of {native.provider} {native.version}",
        load_before=load_before,
    )


def model_facts(executor: LlamaExecutor, name: str) -> Subject:
    """Return which model it is; `name` is what it was asked for by."""
    info = executor.model.info
    return Subject(
        name=name,
        file=executor.model.path.name,
        description=info.description,
        parameters=info.parameters,
        weight_bytes=info.weight_bytes,
        context_tokens=executor.capacity.context_tokens_max,
    )


def package_version() -> str:
    """Return the version of Setpoint."""
    return version("setpoint")


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, marked when it was changed, or `None` outside of one."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607 - whichever git the user has
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def load_average() -> float | None:
    """Return how many processes wanted a processor over the last minute, or `None` where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
