"""The OpenAI-compatible HTTP front: requests in, text out, classes of service by name."""
