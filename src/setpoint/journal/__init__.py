"""The journal: every event and command of a machine, one line each, from which the machine can be run again."""

from setpoint.journal.format import (
    FORMAT,
    Entry,
    Header,
    encode_entry,
    encode_header,
    encode_unanswered,
    read_entries,
    read_header,
)
from setpoint.journal.replay import Divergence, ReplayReport, Unanswered, replay

__all__ = [
    "FORMAT",
    "Divergence",
    "Entry",
    "Header",
    "ReplayReport",
    "Unanswered",
    "encode_entry",
    "encode_header",
    "encode_unanswered",
    "read_entries",
    "read_header",
    "replay",
]
