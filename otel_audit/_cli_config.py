"""The commands about the service's configuration: `otel-audit validate` and `otel-audit print-config`."""

from typing import Final

import click

from otel_audit._cli_common import Command, say, write_out

__all__ = ["print_config", "service_options", "validate"]


_OPTIONS: Final = (
    click.option("--config", metavar="F", help="Configuration file (YAML)."),
    click.option(
        "--dir", "directory", metavar="D", help="Folder of the log; default: $OTEL_AUDIT_DIR, else ./audit-log."
    ),
    click.option("--grpc", metavar="HOST:PORT", help="Address of OTLP/gRPC; default: localhost:4317."),
    click.option("--http", metavar="HOST:PORT", help="Address of OTLP/HTTP; default: localhost:4318."),
)


def service_options(command: Command) -> Command:
    """The options that say what a service runs with: `--config`, `--dir`, `--grpc`, `--http`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(short_help="Find everything that is wrong with a configuration file.")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
def validate(files: tuple[str, ...]) -> int:
    """Find everything that is wrong with configuration files of `otel-audit serve`, with lines.

    Exit code 0 if they are good, 2 if one is not.
    """
    from otel_audit import config

    wrong = 0
    for file in files:
        found = config.problems(file)
        for problem in found:
            say(f"error: {problem}")
        if not found:
            write_out(f"{file}: good")
        wrong += bool(found)
    return 2 if wrong else 0


@click.command("print-config", short_help="Print the configuration that the service would run with.")
@service_options
def print_config(config: str | None, directory: str | None, grpc: str | None, http: str | None) -> None:
    """Print, as YAML, every setting that `otel-audit serve` would run with, defaults included; secrets are not shown."""
    import yaml

    from otel_audit import config as configuration

    settings = configuration.load(config, {"dir": directory, "grpc": grpc, "http": http})
    write_out(yaml.safe_dump(configuration.tree(settings), sort_keys=False, allow_unicode=True).rstrip())
