"""The report of `otel-audit check` for a person."""

import shlex
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from otel_audit import names
from otel_audit._check_result import Finding, Result
from otel_audit._cli_text import safe

__all__ = ["text_of"]

_WIDTH: Final = 100
_ROUTES_MAX: Final = 60
_TAIL_LINES: Final = 12
_NO_TAIL: Final = frozenset({"excluded", "destination", "setting"})


def text_of(result: Result) -> str:
    """Several lines; the last is the verdict."""
    lines = [f"otel-audit check: {shlex.join(result.command)}", ""]
    if result.process:
        lines += _process(result)
        lines += _apps(result.process)
        lines += _calls(result)
    lines += _findings("Good to know", result.notices)
    lines += _findings("In the way", result.problems)
    if result.problems and not _NO_TAIL.issuperset(p.id for p in result.problems):
        lines += _tail(result.ran.output)
    count = len(result.problems)
    if result.audited:
        lines.append("AUDITED: nothing stands in the way")
    elif count == 1:
        lines.append("NOT (ALL) AUDITED: one thing stands in the way")
    else:
        lines.append(f"NOT (ALL) AUDITED: {count} things stand in the way")
    return "\n".join(safe(line) for line in lines)


def _row(name: str, value: object) -> str:
    return f"  {name:<14}{value}"


def _process(result: Result) -> Iterator[str]:
    process = result.process
    yield _row(
        "capture", f"otel-audit {process['version']} " + ("installed" if process["installed"] else "NOT installed")
    )
    yield _row("process", f"{process['pid']}, {process['python']}")
    if result.ran.listens:
        yield _row("listens on", ", ".join(result.ran.listens))
    said = process.get("settings")
    if said is not None:
        if result.destination is not None:
            reached = {True: "takes records", False: "does NOT take records", None: "not tried"}
            to = said["destination"]
            tls = "" if to["kind"] == "log" else ", TLS" if to["tls"] else ", no TLS"
            yield _row("destination", f"{to['text']}{tls}: {reached[result.destination['reachable']]}")
        yield from _settings(said)
    tracing = process["tracing"]
    if tracing.get("configured"):
        yield _row(
            "tracing", f"sampler {_short(tracing['sampler'])}; exporters: {', '.join(tracing['exporters']) or 'none'}"
        )
        yield _row("", "they see the spans they saw before; those of calls also name the caller")
        yield _row("propagators", ", ".join(process["propagators"]))
        yield _row("attributes", f"at most {tracing['attributes_max']} on a span")
    yield ""


def _short(sampler: str | None) -> str:
    return (sampler or "none").partition("{")[0] if sampler and len(sampler) > 60 else sampler or "none"


def _settings(said: dict[str, Any]) -> Iterator[str]:
    headers = said["destination"]["headers"]
    if headers:
        yield _row("", f"with headers {', '.join(headers)} (values not shown)")
    yield _row("mode", said["mode"])
    yield _row("spool", f"{said['spool']['folder']}, at most {said['spool_bytes'] // 1048576} MiB a process")
    if said["clients"]:
        yield _row("clients", f"{said['clients_known']} in {said['clients']}")
    else:
        yield _row("clients", f"no directory ({names.ENV_CLIENTS}): callers are named by their credentials alone")
    keyed = "a secret hash" if said["hash_key"] else f"a public hash ({names.ENV_HASH_KEY} is not set)"
    yield _row("API keys", f"in {said['api_key_header']}; unknown ones appear as {keyed}")
    if said["client_header"]:
        yield _row("client header", said["client_header"])
    if said["resolver"]:
        yield _row("resolver", said["resolver"])
    yield _row("JWTs", f"verified against {said['jwks_path']}" if said["jwks_path"] else "read, not verified")
    proxies = list(said["trusted_proxies"]) + ([f"{said['trusted_hops']} hops"] if said["trusted_hops"] else [])
    yield _row(
        "proxies", f"trusted: {', '.join(proxies)}" if proxies else "none trusted: forwarding headers do not count"
    )
    for name in ("forwarding_header", "certificate_header"):
        if said.get(name):
            yield _row(name.replace("_", " ")[:13], said[name])
    if said["rules_path"]:
        yield _row("rules", said["rules_path"])


def _apps(process: dict[str, Any]) -> Iterator[str]:
    frameworks = {f["name"]: f for f in process["frameworks"]}
    for app in process["apps"]:
        framework = frameworks[app["framework"]]
        instrumented = app["instrumented"] or (app["instrumented"] is None and framework["instrumented"])
        title = f" {app['name']!r}" if app["name"] else ""
        yield f"  {app['framework']} {framework['version'] or ''}{title}: " + (
            "instrumented" if instrumented else "NOT instrumented"
        )
        rows = [("METHOD", "ROUTE", "ACTION", "SERVICE", "MODE")]
        for route in app["routes"][:_ROUTES_MAX]:
            action = "(not audited)" if route["hidden_by"] or not instrumented else route["action"] or "by method"
            rows.append((route["method"] or "any", route["route"], action, route["service"] or "", route["mode"] or ""))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        if app["routes"]:
            for row in rows:
                yield "    " + "  ".join([*(f"{row[i]:<{widths[i]}}" for i in range(4)), row[4]]).rstrip()
        if len(app["routes"]) > _ROUTES_MAX:
            yield f"    ... and {len(app['routes']) - _ROUTES_MAX} more (--json lists them)"
        yield ""


def _calls(result: Result) -> Iterator[str]:
    for call in result.ran.calls:
        if call.record is None:
            yield f"  GET {call.url}: {call.status or call.problem}, no record"
            continue
        said = call.record.attributes
        who = said.get(names.CLIENT_ID) or f"not named ({said.get(names.CLIENT_AUTH) or 'no credential'})"
        where = said.get(names.CLIENT_IP) or "an unknown address"
        yield f"  GET {call.url}: {call.status}, recorded; client {who}, from {where}"
    if result.ran.calls:
        yield ""


def _findings(title: str, found: list[Finding]) -> Iterator[str]:
    if not found:
        return
    yield title
    for number, one in enumerate(found, 1):
        yield from textwrap.wrap(
            one.what, _WIDTH, initial_indent=f"  {number}. ", subsequent_indent="     ", break_long_words=False
        )
        if one.remedy:
            yield from textwrap.wrap(
                one.remedy, _WIDTH, initial_indent="     -> ", subsequent_indent="        ", break_long_words=False
            )
    yield ""


def _tail(output: str) -> Iterator[str]:
    lines = [line for line in output.splitlines() if line.strip()][-_TAIL_LINES:]
    if lines:
        yield "What the command printed last"
        for line in lines:
            yield f"  | {line.expandtabs()[:_WIDTH]}"
        yield ""
