"""JSON schema to GBNF."""

from setpoint.errors import RequestError


def schema_to_gbnf(schema: str) -> str:
    """Refuse every schema for now."""
    raise RequestError(f"this JSON schema cannot be compiled: {schema[:40]}", param="response_format")
