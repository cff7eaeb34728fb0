"""Changing a module of somebody else's when it is imported, and never failing that import."""

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["when_imported"]

_log = logging.getLogger("otel_audit.capture")


def when_imported(name: str, gap: str, change: Callable[[Any], None]) -> None:
    """Have a module changed, now or when it is imported; what fails is one warning, and everything else is audited.

    Args:
        name: the module.
        gap: what is missing where it cannot be changed.
        change: changes the module that it is given; may raise.
    """
    import wrapt

    def changed(module: Any) -> None:
        try:
            change(module)
        except Exception as e:  # what is raised after an import would fail the import
            _log.warning(
                "adapt %s to otel-audit: %s; %s. Install versions of it and of otel-audit that know each other "
                "(docs/frameworks.md)",
                name,
                e if str(e) else type(e).__name__,
                gap,
            )

    wrapt.register_post_import_hook(changed, name)
