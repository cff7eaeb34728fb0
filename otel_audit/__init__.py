"""otel-audit: every API call becomes one durable audit record."""

__all__ = ["__version__"]

__version__ = "0.1.0"
