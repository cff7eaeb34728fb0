"""The command line: `otel-audit demo`, `check`, `spool`, `serve`, `token`, `find`, `show`, `tail`, `stats`, `gaps`, `export` and so on.

Standard output is data, standard error is messages. Modules that take long to import are imported by the command that
needs them, so that `--help` and completion are quick.
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from otel_audit import __version__
from otel_audit._cli_common import dir_option, json_option, say, write_out
from otel_audit._cli_config import print_config, service_options, validate
from otel_audit._cli_doctor import doctor
from otel_audit._cli_export import export
from otel_audit._cli_find import find, show, tail
from otel_audit._cli_gaps import gaps
from otel_audit._cli_stats import quarantine, stats
from otel_audit._cli_text import count_text, safe
from otel_audit._cli_token import token
from otel_audit.errors import AuditError

__all__ = ["main", "run"]

_PROGRAM: Final = "otel-audit"
_INTERRUPTED: Final = 130
_EPILOG: Final = (
    "Exit codes: 0 good, 1 failure, 2 usage, 3 records are missing, 5 not found, 130 interrupted. More: docs/cli.md"
)


class _Commands(click.Group):
    """Lists the commands in the order of a newcomer's way, and ends quietly when the reader of a pipe does."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            return 1 if ctx.invoked_subcommand == "export" else 0
        return result


def _drop_stdout() -> None:
    """Nobody reads any more: what is left unwritten must not raise again when Python ends."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


@click.group(cls=_Commands, invoke_without_command=True, epilog=_EPILOG)
@click.version_option(__version__, prog_name=_PROGRAM)
@click.option("--debug", is_flag=True, help="Show where in the program an error came from.")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """The audit log of your APIs: receive it, read it, hand it on.

    Standard output is data, standard error is messages.
    """
    context.obj = {"debug": debug}
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# --- commands -------------------------------------------------------------------------------------------------------------
@click.command(short_help="A CRM, its clients and their audit log, with one command.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=15, show_default="15", metavar="S", help="Length of the traffic."
)
@click.option("--dir", "directory", metavar="D", help="Folder of the log; default: ./audit-log-demo.")
def demo(seconds: float, directory: str | None) -> int:
    """A CRM, its clients, and the audit log of their calls, with one command."""
    # By name, for the demo stands above the command line: it prints what the commands print.
    module = importlib.import_module("otel_audit.demo")
    return int(module.run(seconds=seconds, directory=directory) or 0)


@click.command(short_help="Receive OTLP and keep it.")
@service_options
def serve(config: str | None, directory: str | None, grpc: str | None, http: str | None) -> int:
    """Receive OTLP and keep it; Ctrl-C or SIGTERM ends it after what is under way."""
    from otel_audit import config as configuration
    from otel_audit import server
    from otel_audit._log_format import log_to

    settings = configuration.load(config, {"dir": directory, "grpc": grpc, "http": http})
    log_to(sys.stderr, settings.telemetry.logs)

    def ready(addresses: server.Addresses) -> None:
        if settings.telemetry.logs.encoding == "json":  # then nothing else than objects is written
            logging.getLogger("otel_audit.server").info("%s", addresses, extra=asdict(addresses))
        else:
            say(str(addresses))

    return server.serve(settings, ready=ready)


@click.command(short_help="Seal what is not sealed yet, now.")
@dir_option
@json_option("Print one JSON object.")
def seal(directory: str, as_json: bool) -> None:
    """Seal what is not sealed yet, now; for a folder that no server has open."""
    from otel_audit.auditlog import AuditLog
    from otel_audit.reader import log_name

    name = log_name(directory)  # opening the log for writing would make one
    with AuditLog.open(directory) as log:
        done = log.seal()
    if as_json:
        write_out(json.dumps({"log": name, "records": done.records, "sealed_seq": done.sealed_seq}))
    elif done.records:
        say(f"sealed {count_text(done.records, 'record')}; all up to number {done.sealed_seq} are sealed")
    else:
        say(f"nothing to seal; all up to number {done.sealed_seq} are sealed")


_HANDED_OVER: Final[dict[str, Any]] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False},
}
"""For commands that work in the base install, and so read their arguments without click."""


@click.command(short_help="What of a service would be audited, and what is in the way.", **_HANDED_OVER)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def check(arguments: tuple[str, ...]) -> int:
    """Run a service's command, and tell what of it would be audited and what stands in the way."""
    from otel_audit import check as checking

    return checking.main(arguments)


@click.command(short_help="What waits in the spool of a service, and shipping it by hand.", **_HANDED_OVER)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def spool(arguments: tuple[str, ...]) -> int:
    """List what waits in a spool on this machine, and hand over what dead processes have left."""
    from otel_audit import spool as spooled

    return spooled.main(arguments)


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, flags and values in a shell.

    For bash: eval "$(otel-audit completion bash)"
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    write_out(found(main, {}, _PROGRAM, "_OTEL_AUDIT_COMPLETE").source())


for _command in (
    demo,
    check,
    spool,
    serve,
    validate,
    print_config,
    token,
    doctor,
    find,
    show,
    tail,
    stats,
    gaps,
    export,
    seal,
    quarantine,
    completion,
):
    main.add_command(_command)


# --- run ------------------------------------------------------------------------------------------------------------------
def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a record's text must never fail to print
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = main.main(given, prog_name=_PROGRAM, standalone_mode=False, complete_var="_OTEL_AUDIT_COMPLETE")
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        say("interrupted")
        return _INTERRUPTED
    except click.ClickException as e:
        return _failed(_click_text(e), e.exit_code)
    except AuditError as e:
        _trace_if(given)
        return _failed(str(e), e.exit_code)
    except OSError as e:
        _trace_if(given)
        return _failed(f"{e.filename or 'input or output'}: {e.strerror or e}", 1)
    except Exception as e:
        _trace_if(given)
        return _failed(f"unexpected {type(e).__name__}: {e}; this is a fault of otel-audit, --debug shows where", 1)


def _failed(text: str, code: int) -> int:
    say(f"error: {' '.join(safe(text).splitlines())}")
    return code


def _trace_if(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        import traceback

        say("")
        sys.stderr.write(safe(traceback.format_exc()).replace("\\x0a", "\n"))


def _click_text(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    parameter = error.param if isinstance(error, click.MissingParameter) else None
    if parameter is not None and isinstance(parameter.type, click.Choice):
        *others, last = map(str, parameter.type.choices)  # click would list them over several lines
        text = f"missing {parameter.param_type_name} {parameter.get_error_hint(context)}: "
        text += f"choose {', '.join(others)} or {last}"
    else:
        text = error.format_message().rstrip(".?")
        text = text[:1].lower() + text[1:]
    path = context.command_path if context is not None else _PROGRAM
    return f"{text}; see {path} --help"
