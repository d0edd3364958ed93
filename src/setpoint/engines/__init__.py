"""Engines: the driver that all share, and one adapter for each kind."""
