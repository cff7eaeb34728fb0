"""`doctor`: what in Collectors' configuration would lose or change audit data, and a canary through the live pipeline."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._cli_common import dir_option, json_option, say, write_out
from otel_audit._cli_text import count_text, safe
from otel_audit.errors import UsageError

if TYPE_CHECKING:
    from otel_audit.canary import Result
    from otel_audit.doctor import Finding

__all__ = ["doctor"]

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}
_MISSING: Final = 3
"""Exit code of a canary that did not come through whole, as that of `gaps`."""
_SHOWN: Final = 40
_RANGES_SHOWN: Final = 8


@click.command(short_help="What in a Collector's configuration would lose or change calls.")
@click.argument("files", nargs=-1, metavar="[FILE]…")
@click.option(
    "--next",
    "following",
    multiple=True,
    metavar="FILE[,FILE]",
    help="The next Collector on the way to the log, with its files; may be given several times.",
)
@click.option(
    "--exporter",
    "exporters",
    multiple=True,
    metavar="NAME",
    help="The exporter that leads to the log, where doctor cannot tell.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option(
    "--canary",
    metavar="ENDPOINT",
    help="Send numbered calls to this OTLP endpoint, and count them in the log of --dir.",
)
@dir_option
@click.option("--send-only", is_flag=True, help="With --canary: do not look for the calls in a log on this machine.")
@click.option(
    "--count", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N", help="How many calls."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=60,
    show_default=True,
    metavar="S",
    help="How long to wait for them.",
)
@click.option(
    "--protocol", type=click.Choice(["grpc", "http"]), help="Of --canary; default: http for port 4318, else grpc."
)
@click.option(
    "--header", "headers", multiple=True, metavar="K=V", help="A header for --canary, such as authorization=..."
)
@click.option("--ca", default="", metavar="FILE", help="Certificates to trust for --canary; default: the system's.")
@json_option("Print one JSON object a finding, or one for the canary.")
def doctor(files: Sequence[str], *, canary: str | None, as_json: bool, **said: Any) -> int:
    """Find what in the configuration of Collectors would lose or change calls on their way to the log.

    Several FILEs are merged, as a Collector does. Exit code 0: no errors (with --strict: no warnings either), 1: some, 2: a
    file cannot be read. With --canary 3: calls are missing or changed.
    """
    if bool(files) == bool(canary):
        hint = "otel-audit doctor collector.yaml, or otel-audit doctor --canary http://localhost:4317 --dir D"
        raise UsageError("examine", "nothing" if not files else "both", "give files or --canary", hint)
    if canary:
        return _canary(canary, as_json=as_json, **said)
    from otel_audit.doctor import examine

    collectors = [list(files), *([part for part in entry.split(",") if part] for entry in said["following"])]
    findings = examine(collectors, exporters=said["exporters"])
    if as_json:
        for finding in findings:
            write_out(json.dumps(finding.json()))
    else:
        _print(findings)
    counts = {s: sum(f.severity == s for f in findings) for s in ("error", "warning", "note")}
    say(
        ", ".join(count_text(n, s) for s, n in counts.items())
        if findings
        else "nothing found that would lose or change calls"
    )
    return 1 if counts["error"] or (said["strict"] and counts["warning"]) else 0


def _print(findings: "Sequence[Finding]") -> None:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in findings:
        severity = (
            click.style(finding.severity, fg=_COLOURS[finding.severity], bold=True) if colour else finding.severity
        )
        subject = f" {safe(finding.component)}" if finding.component else ""
        write_out(f"{safe(finding.file)}:{finding.line}: {severity} [{finding.rule}]{subject}")
        write_out(f"  {safe(finding.reason)}")
        first, *rest = finding.remedy.splitlines()
        if rest:
            write_out("  do:")
            for line in (first, *rest):
                write_out(f"    {safe(line)}")
        else:
            write_out(f"  do: {safe(first)}")
        write_out("")


# --- canary ---------------------------------------------------------------------------------------------------------------
def _canary(endpoint: str, *, as_json: bool, directory: str, **said: Any) -> int:
    from otel_audit import canary

    target = canary.Target(endpoint, said["protocol"] or "", _headers(said["headers"]), said["ca"])
    if said["send_only"]:
        source = canary.send_only(target, count=said["count"], timeout_s=said["timeout"])
        write_out(json.dumps({"source": source, "sent": said["count"] + 2}) if as_json else source)
        say(f"sent {said['count'] + 2} records; at the log: otel-audit gaps --all --source {source}")
        return 0
    result = canary.run(target, directory, count=said["count"], timeout_s=said["timeout"])
    if as_json:
        write_out(json.dumps(result.json()))
    else:
        _print_result(result)
    return 0 if result.good else _MISSING


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise UsageError("read header", "--header", "it has no =", "write it as --header name=value")
        headers[name.strip()] = value.strip()
    return headers


def _print_result(result: "Result") -> None:
    line = f"{result.source}: {result.arrived:,} of {result.sent:,} records arrived"
    if result.latency_ms:
        median, longest = result.latency_ms[len(result.latency_ms) // 2], result.latency_ms[-1]
        line += f", latency {median:,.0f} ms median, {longest:,.0f} ms at most"
    write_out(line)
    if result.missing:
        lost = result.sent - result.arrived
        runs = [str(a) if a == b else f"{a}-{b}" for a, b in result.missing[:_RANGES_SHOWN]]
        more = ", …" if len(result.missing) > _RANGES_SHOWN else ""
        about = f"{result.missing_unsampled} of them unsampled, {result.missing_large} large"
        write_out(f"missing {lost:,}: {', '.join(runs)}{more}; {about}")
    if result.duplicates:
        write_out(f"there more than once: {', '.join(map(str, result.duplicates[:_RANGES_SHOWN]))}")
    for change in result.changes:
        sent, arrived = (_short(value) for value in (change.sent, change.arrived))
        write_out(f"changed {change.column} in {count_text(change.records, 'record')}: sent {sent}, arrived {arrived}")


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = safe(value.hex() if isinstance(value, bytes) else str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
