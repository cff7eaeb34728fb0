"""What `otel-audit check` is told by the application it runs: what capture found in this process, as JSON in a file.

Only where `OTEL_AUDIT_CHECK` names the folder of a check. Capture then works as ever, but ships to the check's own
receiver and spools in its folder, and nothing is sampled, so that neither the real log nor anybody's tracing sees a trace
of it. One file for each process, `findings-<pid>.json`, written anew whenever something changed.
"""

import atexit
import dataclasses
import functools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_audit import __version__, names
from otel_audit.capture import _apps
from otel_audit.capture.settings import Destination, Settings
from otel_audit.capture.spool import find_root

__all__ = ["FINDINGS", "SINK", "SPOOL", "Report"]

FINDINGS: Final = "findings-{pid}.json"
SINK: Final = "sink"
"""File with the address of the check's receiver, OTLP/HTTP."""
SPOOL: Final = "spool"

_EVERY_S: Final = 0.4
_LOG_MAX: Final = 100
_SECRET: Final = frozenset({"hash_key", "destination", "problems"})
_EXCLUDED: Final = "OTEL_PYTHON_{}EXCLUDED_URLS"


class _Kept(logging.Handler):
    """Keeps what is said at level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        entry = {"level": record.levelname, "logger": record.name, "text": text[:1000]}
        if len(self.said) < _LOG_MAX and entry not in self.said:
            self.said.append(entry)


class Report:
    """Collects and writes the findings of this process, in a thread of its own, until it ends.

    Args:
        folder: of the check.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._wanted: Settings | None = None
        self._capture: Any = None
        self._spool: dict[str, Any] = {}
        self._samplers: dict[int, str] = {}  # of tracer providers, as they were before
        self._seen = _apps.Seen()
        self._kept = _Kept()
        for name in ("otel_audit", "opentelemetry"):
            logging.getLogger(name).addHandler(self._kept)
        atexit.register(self._write_once)
        os.register_at_fork(after_in_child=self._begin)
        self._begin()

    def _begin(self) -> None:
        self._written = ""
        self._writing = threading.Lock()  # guards `_written` and the file
        threading.Thread(target=self._run, name="otel-audit-check", daemon=True).start()

    # --- capture -------------------------------------------------------------------------------------------------------------
    def harmless(self, wanted: Settings) -> Settings:
        """`wanted`, but spooling in the check's folder, and shipping to its receiver."""
        self._wanted = wanted
        root, problems = find_root(wanted.spool_dir)
        self._spool = {"folder": str(root), "problems": problems}
        sink = (self._folder / SINK).read_text().strip()
        return dataclasses.replace(
            wanted,
            destination=Destination("http", sink + "/v1/traces", timeout_s=2.0),
            spool_dir=str(self._folder / SPOOL),
            exit_timeout_s=min(wanted.exit_timeout_s, 2.0),
        )

    def watch(self, capture: Any) -> None:
        """Be told what `capture` attaches to; call it before it is installed."""
        attach: Callable[[TracerProvider], None] = capture.attach

        def attach_unsampled(provider: TracerProvider) -> None:
            if id(provider) not in self._samplers:
                self._samplers[id(provider)] = provider.sampler.get_description()
                provider.sampler = ALWAYS_OFF  # what happens in a check is nobody else's business
            attach(provider)

        capture.attach = attach_unsampled
        self._capture = capture

    # --- writing -------------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        wait = threading.Event()
        while self._folder.is_dir():
            self._write_once()
            wait.wait(_EVERY_S)

    def _write_once(self) -> None:
        try:
            text = json.dumps(self.findings(), default=str)
            path = self._folder / FINDINGS.format(pid=os.getpid())
            with self._writing:
                if text != self._written:
                    draft = path.with_suffix(f".{threading.get_ident()}")
                    draft.write_text(text)
                    draft.replace(path)
                    self._written = text
        except Exception:  # the check sees that there is no file
            logging.getLogger("otel_audit.capture").debug("write findings of a check", exc_info=True)

    # --- findings ------------------------------------------------------------------------------------------------------------
    def findings(self) -> dict[str, Any]:
        """Everything that is known now; plain values, no secret among them."""
        found: dict[str, Any] = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "python": sys.executable,
            "version": __version__,
            "modules": len(sys.modules),
            "installed": self._capture is not None,
            "log": list(self._kept.said),
        }
        if self._wanted is not None:
            found["settings"] = self._settings(self._wanted)
        apps = self._seen.apps()
        found["apps"] = [self._app(app) for app in apps]
        found["frameworks"] = [_framework(name) for name in dict.fromkeys(app.framework for app in apps)]
        found["unknown_frameworks"] = [name for name in _apps.UNKNOWN if name in sys.modules]
        found["middleware"] = list(self._seen.middleware)
        found["tracing"] = self._tracing()
        found["propagators"] = _propagators(get_global_textmap())
        return found

    def _settings(self, wanted: Settings) -> dict[str, Any]:
        to = wanted.destination
        said = {
            field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted) if field.name not in _SECRET
        }
        said["mode"] = self._mode()
        said["hash_key"] = "set" if wanted.hash_key else None
        said["destination"] = {
            **{f.name: getattr(to, f.name) for f in dataclasses.fields(to) if f.name != "headers"},
            "headers": [name for name, _ in to.headers],
            "text": str(to),
        }
        said["spool"] = self._spool
        clients = getattr(self._capture, "clients", None)
        said["clients_known"] = len(clients) if clients is not None and wanted.clients else 0
        return said

    def _tracing(self) -> dict[str, Any]:
        provider = trace.get_tracer_provider()
        said: dict[str, Any] = {"provider": f"{type(provider).__module__}.{type(provider).__name__}"}
        inner = getattr(provider, "provider", provider)  # logfire's stands in front of the SDK's
        if not isinstance(inner, TracerProvider):
            return said
        processors = getattr(getattr(inner, "_active_span_processor", None), "_span_processors", ())
        limits = getattr(inner, "_span_limits", None)
        return {
            **said,
            "configured": True,
            "attached": any(type(p).__name__ == "AuditSpanProcessor" for p in processors),
            "sampler": self._samplers.get(id(inner)),
            "sampler_kept": type(inner.sampler).__name__ == "AuditSampler",
            "exporters": [_exporter(p) for p in processors if type(p).__name__ != "AuditSpanProcessor"],
            "attributes_max": getattr(limits, "max_span_attributes", None),
            "service": inner.resource.attributes.get(names.SERVICE_NAME),
        }

    def _app(self, app: _apps.App) -> dict[str, Any]:
        hide = _hider(_apps.FRAMEWORKS[app.framework].excluded)
        return {
            "framework": app.framework,
            "name": app.name,
            "instrumented": app.instrumented,
            "routes": [{**self._route(app, route), "hidden_by": hide(route.path)} for route in app.routes],
        }

    def _route(self, app: _apps.App, route: _apps.Route) -> dict[str, Any]:
        said: dict[str, Any] = {"method": route.method, "route": route.path, "operation": route.operation}
        if app.framework.startswith("grpc"):
            service, _, method = route.path.rpartition("/")
            attributes = {"rpc.service": service, "rpc.method": method}
        else:
            attributes = {"http.request.method": route.method, "http.route": route.path}
        calls = getattr(self._capture, "calls", None)
        rules = getattr(calls, "_rules", None)
        named = rules.names_for(attributes, route.operation) if rules is not None else {}
        mode = rules.mode_at_end(attributes, route.operation) if rules is not None else None
        said["action"], said["service"] = named.get(names.ACTION), named.get(names.SERVICE)
        said["mode"] = mode or self._mode()
        return said

    def _mode(self) -> str | None:
        """The mode in force, which is not the one asked for where that makes no sense."""
        in_force = getattr(self._capture, "settings", self._wanted)
        return None if in_force is None else in_force.mode


def _framework(name: str) -> dict[str, Any]:
    framework = _apps.FRAMEWORKS[name]
    said: dict[str, Any] = {
        "name": name,
        "version": _version(framework.distribution),
        "package": framework.package,
        "package_version": _version(framework.package) if framework.package else None,
        "instrumented": any(map(_is_instrumented, framework.instrumentors)),
        "conflict": None,
        "disabled_by": None,
    }
    if framework.package and said["package_version"] and not said["instrumented"]:
        said["conflict"] = _conflict(framework.package)
        disabled = [e.strip() for e in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")]
        if "*" in disabled or any(entry in disabled for entry in framework.entry_points):
            said["disabled_by"] = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
    return said


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _is_instrumented(path: str) -> bool:
    module, _, name = path.partition(":")
    if module not in sys.modules:
        return False
    instance = getattr(getattr(sys.modules[module], name, None), "_instance", None)
    return bool(getattr(instance, "is_instrumented_by_opentelemetry", False))


@functools.cache
def _conflict(package: str) -> str | None:
    """Why OpenTelemetry refuses to instrument a framework of the version that is installed."""
    try:
        found = import_module("opentelemetry.instrumentation.dependencies").get_dist_dependency_conflicts(
            metadata.distribution(package)
        )
    except Exception:
        return None
    return None if found is None else str(found)


def _exporter(processor: Any) -> str:
    """A processor's exporter, else the processor itself, by name."""
    exporter = getattr(processor, "span_exporter", None)
    if exporter is None:
        exporter = getattr(getattr(processor, "_batch_processor", None), "_exporter", None)
    return type(processor if exporter is None else exporter).__name__


def _propagators(found: Any) -> list[str]:
    inner = getattr(found, "_propagators", None)
    if inner is None:
        # Some stand in front of another.
        wrapped = getattr(found, "wrapped", None)
        return [type(found).__name__, *(_propagators(wrapped) if wrapped is not None else ())]
    return [name for one in inner for name in _propagators(one)]


def _hider(part: str | None) -> Callable[[str], str | None]:
    """Tells the setting that hides a route from its instrumentation, which then makes no span."""
    own, shared = _EXCLUDED.format(f"{part}_"), _EXCLUDED.format("")
    setting = own if own in os.environ else shared
    patterns = [p.strip() for p in os.environ.get(setting, "").split(",")] if part and os.environ.get(setting) else []
    try:
        excluded = re.compile("|".join(patterns))
    except re.error:  # the instrumentation says so itself
        patterns = []

    def hidden_by(route: str) -> str | None:
        path = _apps.sample_path(route)
        # Most compare the whole address, some the path alone.
        return setting if patterns and (excluded.search(path) or excluded.search(f"http://localhost{path}")) else None

    return hidden_by
