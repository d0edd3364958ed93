"""Seconds of a step of given shape: fitted to measurements, learned online, or derived from an architecture."""
