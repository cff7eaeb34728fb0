"""The `otel-audit` command; says what to install where only the light base is."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from otel_audit.cli import run
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("otel_audit"):
            raise
        print(  # noqa: T201 - there is no console yet
            f"otel-audit: this command needs the package {e.name}; install it with: pip install 'otel-audit[server]'",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
