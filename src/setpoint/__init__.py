"""Setpoint finds the best operating point between throughput and latency for model inference, and holds it."""
