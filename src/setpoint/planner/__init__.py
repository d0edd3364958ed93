"""Decisions from measurements: which load holds, which operating point to choose, what it costs, what would help."""
