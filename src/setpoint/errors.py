"""The exceptions of Setpoint, named by whose fault they are.

    SetpointError
    |-- UserError            the caller can mend it: the message says what, the hint says how
    |   |-- ConfigError      a setting is unknown, malformed or contradicts another
    |   |-- JournalError     a journal is none, of another version, or damaged
    |   |-- ModelError       a model file is missing, broken or does not fit
    |   |-- RequestError     one request is malformed (an HTTP 400)
    |   `-- WorkloadError    a trace, a distribution or a target is malformed
    `-- EngineError          the engine failed; the request may be tried again (an HTTP 500)

A refusal is not an exception but a value (`Reject`), and a bug is an assertion.
"""


class SetpointError(Exception):
    """Any error that Setpoint raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep `message` (what is wrong) and `hint` (what to do about it)."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(SetpointError):
    """The caller can mend it."""


class ConfigError(UserError):
    """A setting is unknown, malformed or contradicts another."""


class JournalError(UserError):
    """A journal is none, of another version, or damaged."""


class ModelError(UserError):
    """A model file is missing, broken or does not fit."""


class RequestError(UserError):
    """One request is malformed."""

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        """Keep also `param`, the field at fault, and `code`, the machine-readable kind of error."""
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class WorkloadError(UserError):
    """A trace, a distribution or a target is malformed."""


class EngineError(SetpointError):
    """The engine failed."""
