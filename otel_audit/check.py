"""`otel-audit check -- COMMAND`: what of a service would be audited, and what stands in the way.

It runs the command as its developer would, with capture shipping to the check itself, asks capture what it found
(`capture.report`), tries the real destination with an empty request, and judges. Needs the base install only.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

from otel_audit import _check_loading, names
from otel_audit._check_destination import try_destination
from otel_audit._check_result import Result
from otel_audit._check_run import Ran, run
from otel_audit._check_text import text_of
from otel_audit._otlp_rules import http_action
from otel_audit.capture._apps import FRAMEWORKS

__all__ = ["judge", "main"]

_TIMEOUT_S: Final = 30.0
_ATTRIBUTES_FEW: Final = 48
_INSTALL: Final = "install otel-audit: "
_NARROW: Final = "narrow the pattern; if that is meant: otel-audit check --allow-excluded"
_DOCS: Final = "see docs/check.md"


# --- judging ----------------------------------------------------------------------------------------------------------------
def judge(command: list[str], ran: Ran, *, allow_excluded: bool = False, offline: bool = False) -> Result:
    """What the findings of a run mean.

    Args:
        command: that was run.
        ran: what it did.
        allow_excluded: whether routes may be hidden by `OTEL_PYTHON_..._EXCLUDED_URLS`.
        offline: whether the destination is not tried.
    """
    result = Result(command, ran)
    if not ran.findings:
        result.problem(*_check_loading.why_not_loaded(command, ran))
        _judge_run(result)
        return result
    result.process = max(ran.findings, key=lambda f: (sum(1 + len(a["routes"]) for a in f["apps"]), f["installed"]))
    _judge_log(result)
    if result.process["installed"]:
        _name_routes(result.process)
        _judge_tracing(result)
        _judge_destination(result, offline=offline)
    _judge_apps(result, allow_excluded=allow_excluded)
    _judge_run(result)
    _judge_calls(result)
    return result


def _judge_run(result: Result) -> None:
    ran = result.ran
    if ran.exit_code is not None:
        how = f"with exit code {ran.exit_code}" if ran.exit_code >= 0 else f"by signal {-ran.exit_code}"
        result.problem("ended", f"the command ended {how} before it served", "what it printed last is below")
    elif not ran.listens and sys.platform == "linux":
        result.problem("not-serving", "the command did not listen on any socket in time", "give it longer: --timeout S")


def _judge_log(result: Result) -> None:
    """What capture and the instrumentations complained of, in any process."""
    for said in (entry for found in result.ran.findings for entry in found["log"]):
        logger, text = said["logger"], said["text"]
        if text.startswith(f"{_INSTALL}the tracer provider"):
            continue  # `_judge_tracing` tells
        if text.startswith(_INSTALL):
            if "OTEL_SDK_DISABLED" in text:
                what = "OTEL_SDK_DISABLED is true, so OpenTelemetry makes no spans and no call is audited"
                result.problem(
                    "sdk-disabled", what, "unset OTEL_SDK_DISABLED; OTEL_TRACES_EXPORTER=none silences tracing"
                )
            else:
                result.problem("not-installed", f"capture could not be installed: {text.removeprefix(_INSTALL)}")
        elif logger.startswith("otel_audit") and not text.startswith("ship audit records"):
            result.problem("setting", text)
        elif logger.startswith("opentelemetry.instrumentation") and "auto initialize" in text:
            what = f"opentelemetry-instrument gave up: {text.partition(': ')[2] or text}"
            result.problem("auto-initialize", what, "what is not instrumented by then makes no spans; fix that package")
        elif logger.startswith("opentelemetry.instrumentation") and said["level"] in ("ERROR", "CRITICAL"):
            result.notice("instrumentation", text)
    if not result.process["installed"] and not result.problems:
        result.problem("not-installed", "capture was loaded and not installed", _DOCS)


def _judge_tracing(result: Result) -> None:
    tracing = result.process["tracing"]
    if not tracing.get("configured"):
        if tracing["provider"].endswith("ProxyTracerProvider"):
            what = "nobody configures OpenTelemetry; capture does with the first call, and samples nothing for others"
            result.notice("not-configured", what)
        else:
            remedy = "calls are audited where a TracerProvider of the SDK makes their spans"
            if tracing["provider"].startswith("ddtrace."):
                remedy = "set DD_TRACE_OTEL_ENABLED=false, or start with: ddtrace-run opentelemetry-instrument ..."
            result.problem("provider", f"the tracer provider is a {tracing['provider']}, not the SDK's", remedy)
        return
    if not tracing["attached"]:
        what = "the tracer provider in use has lost the span processor of otel-audit"
        result.problem("processor", what, "do not replace the processors of a provider; use add_span_processor")
    if not tracing["sampler_kept"]:
        what = "the application replaced the sampler of its tracer provider, so unsampled calls are not audited"
        result.problem("sampler", what, "give the sampler to TracerProvider(sampler=...), or set OTEL_TRACES_SAMPLER")
    few = tracing["attributes_max"]
    if few is not None and few < _ATTRIBUTES_FEW:
        what = f"a span keeps only {few} attributes, so records may lack the path or the address"
        result.notice("limits", what, "raise OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT")
    if str(tracing["service"] or "unknown_service").startswith("unknown_service"):
        result.notice(
            "service-name", "the service has no name: the column Service says unknown_service", "set OTEL_SERVICE_NAME"
        )
    if "IdentityPropagator" not in result.process["propagators"]:
        what = "the application replaced the propagators, so callers are not named"
        remedy = "set them with OTEL_PROPAGATORS, or as CompositePropagator([get_global_textmap(), yours])"
        result.problem("propagator", what, remedy)


def _judge_apps(result: Result, *, allow_excluded: bool) -> None:
    process = result.process
    frameworks = {f["name"]: f for f in process["frameworks"]}
    for app in process["apps"]:
        _judge_app(result, app, frameworks[app["framework"]])
        hidden = [r for r in app["routes"] if r["hidden_by"]]
        if hidden:
            listed = ", ".join(f"{r['method']} {r['route']}".strip() for r in hidden[:5]) + (
                ", ..." if len(hidden) > 5 else ""
            )
            what = f"{hidden[0]['hidden_by']} hides {len(hidden)} route{'s'[: len(hidden) > 1]} from auditing: {listed}"
            note = result.notice if allow_excluded else result.problem
            note("excluded", what, "" if allow_excluded else _NARROW)
    if process["apps"]:
        return
    if process["unknown_frameworks"]:
        named = ", ".join(process["unknown_frameworks"])
        what = f"OpenTelemetry has no instrumentation for {named}"
        remedy = "wrap the application in OpenTelemetryMiddleware of opentelemetry-instrumentation-asgi or -wsgi"
        note = result.notice if process["middleware"] else result.problem
        note("no-instrumentation", what, remedy)
    elif not process["middleware"] and result.ran.exit_code is None:
        remedy = "known are " + ", ".join(name for name in FRAMEWORKS if "." not in name)
        result.problem("no-application", "no application of a known framework was found", remedy)


def _judge_app(result: Result, app: dict[str, Any], framework: dict[str, Any]) -> None:
    if app["instrumented"] or (app["instrumented"] is None and framework["instrumented"]):
        return
    name, package = app["framework"], framework["package"]
    label = f"{name} {framework['version'] or ''}".strip()
    note = result.notice if result.process["middleware"] else result.problem
    if package is None:
        remedy = "wrap the application in OpenTelemetryMiddleware of opentelemetry-instrumentation-asgi"
        note("no-instrumentation", f"OpenTelemetry has no instrumentation for {name}", remedy)
    elif framework["package_version"] is None:
        note("no-package", f"{label} is not instrumented: {package} is not installed", f"pip install {package}")
    elif framework["conflict"]:
        what = f"{label} is not instrumented: {package} {framework['package_version']} refuses it ({framework['conflict']})"
        note("conflict", what, f"install a version of {framework['name']} that it takes, or upgrade {package}")
    elif framework["disabled_by"]:
        what = f"{label} is not instrumented: {framework['disabled_by']} switches it off"
        note("disabled", what, f"take it out of {framework['disabled_by']}")
    elif framework["instrumented"]:
        article = "an" if name[0] in "aeiou" else "a"
        what = f"{article} {name} application was made before {name} was instrumented, so its calls make no spans"
        remedy = (
            "start with opentelemetry-instrument, or call otel_audit.install() and the instrumentor before importing it"
        )
        note("made-early", what, remedy)
    else:
        what = f"{label} is not instrumented, though {package} is installed"
        note("not-instrumented", what, "start with opentelemetry-instrument, or call the package's instrument()")


def _judge_calls(result: Result) -> None:
    for call in result.ran.calls:
        if call.problem:
            remedy = "is that where the service listens?"
            apps = result.process.get("apps", ())
            if apps and all(app["framework"].startswith("grpc") for app in apps):
                remedy = "--url calls HTTP services; a gRPC service is checked without it"
            result.problem("call", f"GET {call.url} had no answer: {call.problem}", remedy)
        elif call.record is None:
            what = f"GET {call.url} was answered with {call.status}, and no record came of it"
            result.problem("no-record", what, _DOCS)


def _name_routes(process: dict[str, Any]) -> None:
    """Say of each route what a record of it says where no rule does."""
    service = process["tracing"].get("service") or os.environ.get("OTEL_SERVICE_NAME")
    for app in process["apps"]:
        for route in app["routes"]:
            if route["action"] is None:
                rpc = app["framework"].startswith("grpc")
                path = route["route"]
                named = path.rpartition("/")[2] if rpc else http_action(route["method"], path, templated=True)
                route["action"] = named if rpc or route["method"] else None
            route["service"] = route["service"] or service


# --- the destination --------------------------------------------------------------------------------------------------------
def _judge_destination(result: Result, *, offline: bool) -> None:
    found = result.process["settings"]["destination"]
    result.destination = {**found, "reachable": None, "answer": ""}
    for complaint in result.process["settings"]["spool"]["problems"]:
        folder = result.process["settings"]["spool"]["folder"]
        result.problem(
            "spool", f"{complaint}; {folder} is used instead", "set OTEL_AUDIT_SPOOL_DIR to a folder to write to"
        )
    if not (os.environ.get(names.ENV_ENDPOINT) or found["kind"] == "log"):
        what = "no OTEL_AUDIT_ENDPOINT is set: records go where OTEL_EXPORTER_OTLP_ENDPOINT or its default says"
        result.notice("endpoint", what, "a Collector there must pass traces on to otel-audit")
    if offline:
        return
    tried = try_destination(found)
    result.destination |= {"reachable": tried.reachable, "answer": tried.answer}
    if not tried.reachable:
        result.problem("destination", f"{found['text']} does not take records: {tried.answer}", tried.remedy)


# --- command line -----------------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-audit check",
        usage="otel-audit check [--timeout S] [--url PATH]... [--allow-excluded] [--offline] [--json] -- COMMAND...",
        description="Run COMMAND, as you start your service, and tell what of it would be audited and what stands in the "
        "way. Nothing is sent to the log, and nobody's tracing sees it; the command is stopped afterwards.",
        epilog="Exit codes: 0 audited, 1 something stands in the way, 2 usage. More: docs/check.md",
    )
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT_S, metavar="S", help="seconds it may take to serve (30)"
    )
    parser.add_argument(
        "--url", action="append", default=[], metavar="PATH", help="GET this, and see its record arrive"
    )
    parser.add_argument("--allow-excluded", action="store_true", help="routes may be hidden by ..._EXCLUDED_URLS")
    parser.add_argument("--offline", action="store_true", help="do not try the destination")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what starts the service")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `otel-audit check` with these arguments; gives the exit code."""
    parser = _parser()
    try:
        given = parser.parse_args(arguments)
    except SystemExit as e:
        return int(e.code or 0)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command or not given.timeout > 0:
        what = "no command" if not command else f"--timeout {given.timeout:g} is not a number of seconds"
        return _failed(f"{what}; for example: otel-audit check -- opentelemetry-instrument uvicorn shop:app", 2)
    started = _check_loading.started_by(command)
    if started is not None and shutil.which(started) is None:
        return _failed(f"run {started}: no such command; name a command as you would in a shell", 2)
    try:
        ran = run(command, timeout_s=given.timeout, urls=given.url)
    except OSError as e:
        return _failed(f"run {command[0]}: {e.strerror or e}; name a command as you would in a shell", 2)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its library says of a failed attempt, the check says itself
    result = judge(command, ran, allow_excluded=given.allow_excluded, offline=given.offline)
    print(json.dumps(result.as_dict(), indent=2, default=str) if given.as_json else text_of(result))  # noqa: T201 - same
    return 0 if result.audited else 1


def _failed(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)  # noqa: T201 - the base install has no console
    return code
