"""The `otel-audit` command; says what to install where only the light base is."""

import sys
from importlib import import_module
from importlib.util import find_spec

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


def main() -> int:
    """Run the command line; returns the exit code."""
    alone = {"check", "spool"} & set(sys.argv[1:2])
    if alone:  # for those who look after a service, who have the base install alone
        command = import_module(f"otel_audit.{alone.pop()}")
        return int(command.main(sys.argv[2:]))
    missing = [name for name in _SERVER if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - there is no console yet
            f"otel-audit: this command needs {', '.join(missing)}; install with: pip install 'otel-audit[server]'",
            file=sys.stderr,
        )
        return 1
    try:
        from otel_audit.cli import run

        return run()
    except KeyboardInterrupt:  # Ctrl-C in a moment at which no command was there to take it
        return 130


if __name__ == "__main__":
    sys.exit(main())
