"""otel-audit: every API call becomes one durable audit record.

`annotate` and `audited` say more about a call; `install` installs capture where `opentelemetry-instrument` does not start
the process. They are loaded when they are first used, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_audit.capture.annotate import annotate
    from otel_audit.capture.jobs import audited

__all__ = ["__version__", "annotate", "audited", "install"]

__version__ = "0.1.0"


def install() -> bool:
    """Install capture in this process, once; before the application makes its objects. Never raises.

    Returns:
        Whether the calls of this process are audited; if not, a warning has said what stands in the way.
    """
    from otel_audit.capture import autoload

    return autoload.install()


def __getattr__(name: str) -> Any:
    found: Any
    if name == "annotate":
        from otel_audit.capture.annotate import annotate as found
    elif name == "audited":
        from otel_audit.capture.jobs import audited as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
