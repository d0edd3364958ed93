"""Named random streams: one seed, many independent generators.

Two consumers that draw from differently named streams never disturb each other, so a change in how one of them draws
leaves the numbers of the others as they were (common random numbers). The core draws nothing.
"""

import random
import zlib


def stream(seed: int, *names: str | int) -> random.Random:
    """Return the generator of the stream called `names` under `seed`; the same arguments give the same numbers."""
    key = "/".join(str(name) for name in names)
    return random.Random(seed * 0x9E3779B1 + zlib.crc32(key.encode()))  # noqa: S311 - simulation, not secrets
