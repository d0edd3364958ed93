"""Simulation: the machines of the core on a virtual clock."""
