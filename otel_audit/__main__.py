"""The `otel-audit` command; says what to install where only the light base is."""

import contextlib
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from otel_audit import __version__

__all__ = ["main"]

# What the command line needs beyond the base install, by import name.
_SERVER = (
    "click",
    "deltalake",
    "duckdb",
    "grpc_health",
    "msgspec",
    "numpy",
    "pyarrow",
    "rich",
    "starlette",
    "uvicorn",
    "yaml",
)
_INTERRUPTED: Final = 130
_HELP: Final = """\
Usage: otel-audit COMMAND [ARGS]...

The audit log of your APIs. Of its commands, the base install has those for whoever runs a service:

  check    What of a service would be audited, and what is in the way.
  spool    What waits in the spool of a service, and shipping it by hand.

All others (serve, find, show, tail, stats, gaps, export, demo, ...) keep or read a log, and need:
  pip install 'otel-audit[server]'"""


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        code = _run()
    except KeyboardInterrupt:  # Ctrl-C in a moment at which no command was there to take it
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        # At once: an interrupt that comes while the interpreter ends would end it by that signal, past our exit code.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _run() -> int:
    alone = {"check", "spool"} & set(sys.argv[1:2])
    if alone:  # for those who look after a service, who have the base install alone
        command = import_module(f"otel_audit.{alone.pop()}")
        return int(command.main(sys.argv[2:]))
    missing = [name for name in _SERVER if find_spec(name) is None]
    if missing and sys.argv[1:2] in ([], ["--help"], ["--version"]):
        print(f"otel-audit, version {__version__}" if sys.argv[1:] == ["--version"] else _HELP)  # noqa: T201 - same
        return 0
    if missing:
        print(  # noqa: T201 - there is no console yet
            f"otel-audit: this command needs {', '.join(missing)}; install with: pip install 'otel-audit[server]'",
            file=sys.stderr,
        )
        return 1
    from otel_audit.cli import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
