"""API keys: who asks. Compared in constant time, and against every key, so that the time taken tells nothing."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from setpoint.gateway.faults import Fault
from setpoint.settings import ApiKey

SCHEME = "bearer "


class Keyring:
    """The keys that a server accepts; an empty ring accepts everyone."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        # digests are of one length: comparing them does not even tell how long a secret is
        self._keys = [(_digest(key.secret), key) for key in keys]

    def identify(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the key of a request, `None` when no keys are set; raise a 401 `Fault` when it has no valid one."""
        if not self._keys:
            return None
        header = headers.get("authorization", "")
        if not header[: len(SCHEME)].lower() == SCHEME:
            raise Fault(401, "this server needs an API key (send it as: Authorization: Bearer KEY)", headers=_ASK)
        offered = _digest(header[len(SCHEME) :].strip())
        matches = [key for digest, key in self._keys if hmac.compare_digest(digest, offered)]
        if not matches:
            raise Fault(401, "this API key is not known here", headers=_ASK)
        return matches[0]


_ASK = {"www-authenticate": "Bearer"}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
