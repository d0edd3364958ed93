"""The door to the machine: events in, commands out, both into the journal; and what happens when the policy fails.

A policy that fails, which is a bug, must not take the engine down with it: it is given up, vLLM schedules by its own
rules until the engine is idle, and then a new machine takes over, `FAILURES_MAX` times at most.
"""

import logging
from collections.abc import Callable

from setpoint.core.steered import SteeredMachine
from setpoint.engines.journal import JournalFile, Recorder
from setpoint.model import AnyCommand, AnyEvent

FAILURES_MAX = 3

log = logging.getLogger(__name__)


class Door:
    """One machine at a time; `machine` is `None` while the policy is given up."""

    def __init__(
        self,
        make_machine: Callable[[], SteeredMachine],
        carry_out: Callable[[AnyCommand], None],
        journal: JournalFile | None,
    ) -> None:
        """Begin with a first machine; `carry_out` does what it commands."""
        self._make_machine = make_machine
        self._carry_out = carry_out
        self._journal = Recorder(journal)
        self._failures = 0
        self.machine: SteeredMachine | None = make_machine()

    def tell(self, event: AnyEvent) -> bool:
        """Hand one event to the machine, and carry out what it commands; return false when that failed just now."""
        if self.machine is None:
            return True
        self._journal.begin(event)
        try:
            commands = self.machine.handle(event)
            self._journal.end(commands)
            for command in commands:
                self._carry_out(command)
        except Exception:
            log.exception("the scheduling policy failed: vLLM schedules by its own rules until it is idle")
            self._failures += 1
            self.machine = None
            self.close()
            return False
        return True

    def renew(self) -> bool:
        """Let a new machine take over after a failure, if that may be; return whether one did."""
        if self.machine is not None or self._failures >= FAILURES_MAX:
            return False
        log.warning("a new machine takes over: setpoint steers again")
        self.machine = self._make_machine()
        return True

    def close(self) -> None:
        """End the journal, which tells of one machine only."""
        self._journal.close()
