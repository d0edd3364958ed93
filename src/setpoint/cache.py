"""Where files are kept between commands: below `setpoint` in the user's cache directory."""

import os
from pathlib import Path


def cache_dir(name: str) -> Path:
    """Return the folder `setpoint/name` in the user's cache directory: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "setpoint" / name
