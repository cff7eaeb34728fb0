"""Starlette and FastAPI: the route of a mounted application.

An instrumentation sees the outermost application only, and takes the mount for the route. Each mount that a request goes
through adds its own route to the scope here; the rest of the route follows from the scope when the call ends.
"""

import functools
from typing import Any

from otel_audit.capture.corrections import MOUNT_KEY

__all__ = ["note_mounts"]


def note_mounts(module: Any) -> None:
    """Change `starlette.routing`."""
    original = module.Mount.matches
    full = module.Match.FULL

    @functools.wraps(original)
    def matches(self: Any, scope: Any) -> Any:
        match, child = original(self, scope)
        if match is full:
            child[MOUNT_KEY] = scope.get(MOUNT_KEY, "") + self.path
        return match, child

    module.Mount.matches = matches
