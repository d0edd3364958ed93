"""The policy: pure, synchronous state machines that take events and return commands."""
