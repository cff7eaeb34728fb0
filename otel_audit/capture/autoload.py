"""Installs capture in a process that `opentelemetry-instrument` starts; the `opentelemetry_pre_instrument` entry point.

At that point OpenTelemetry is configured and nothing is instrumented yet. Installed are: the span processor and the
sampler, on the current tracer provider and on each that is made later (logfire and others make their own); the identity
propagator beside the existing ones; and what delivers waiting records when the process ends or forks.
"""

import atexit
import dataclasses
import functools
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from otel_audit import names
from otel_audit.capture import _uvicorn, settings
from otel_audit.capture.address import TrustedProxies
from otel_audit.capture.clients import ClientDirectory
from otel_audit.capture.frameworks import adapt_frameworks
from otel_audit.capture.identity import IdentityPropagator, IdentityReader
from otel_audit.capture.metrics import observe
from otel_audit.capture.operations import operation_of, watch_requests
from otel_audit.capture.policy import read_policy
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.recorder import Recorder
from otel_audit.capture.resolver import Resolver
from otel_audit.capture.sampler import AuditSampler
from otel_audit.capture.settings import Destination
from otel_audit.capture.tokens import TokenVerifier

__all__ = ["Capture", "flush", "install", "pre_instrument", "provide", "ships_to"]

_log = logging.getLogger("otel_audit.capture")

_LET_END_S: Final = 1.0

_installing = threading.Lock()
_installed: "Capture | None" = None  # written once, under `_installing`


def pre_instrument() -> None:
    """Install capture in this process, once; the entry point of `opentelemetry-instrument`. Never raises."""
    install()


def install() -> bool:
    """Install capture in this process, once; whether its calls are audited. Never raises.

    For a service that is not started by `opentelemetry-instrument`: call it before the framework's instrumentor, from
    anywhere. What stands in the way is logged as one warning with its remedy, and the application serves unaudited.
    """
    global _installed  # noqa: PLW0603 - one capture a process
    try:
        checked = _report()
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            _log.warning("install otel-audit: OTEL_SDK_DISABLED is true, so no call of this process is audited")
            return False
        with _installing:
            if _installed is None:
                wanted = settings.read()
                capture = Capture(wanted if checked is None else checked.harmless(wanted))
                if checked is not None:
                    checked.watch(capture)
                capture.install()
                _installed = capture
    except Exception as e:
        _log.warning(
            "install otel-audit: %s; NO CALL OF THIS PROCESS IS AUDITED until that is put right",
            e if str(e) else type(e).__name__,
            exc_info=_log.isEnabledFor(logging.DEBUG),
        )
    return _installed is not None


@functools.cache
def _report() -> Any:
    """What tells `otel-audit check` about this process, where that command runs it; else None."""
    folder = os.environ.get(names.ENV_CHECK)
    if not folder:
        return None
    from otel_audit.capture.report import Report

    return Report(folder)


def ships_to(destination: Destination) -> bool:
    """Whether installed capture ships to `destination`, so that nobody else need do it."""
    return _installed is not None and _installed.recorder.shipper.destination == destination


def provide() -> str | None:
    """Have a tracer provider that makes spans, if capture is installed; its mode, or None when it is not."""
    if _installed is None:
        return None
    _installed.provide()
    return _installed.settings.mode


def flush(timeout_s: float) -> bool:
    """Whether installed capture has delivered all that ended before, after at most `timeout_s`."""
    return _installed is None or _installed.recorder.shipper.flush(timeout_s)


class Capture:
    """Capture in one process: what records its calls, and where that is attached.

    Args:
        wanted: the settings.
    """

    def __init__(self, wanted: settings.Settings) -> None:
        policy = read_policy(wanted)
        wanted = dataclasses.replace(wanted, mode=policy.mode, problems=(*wanted.problems, *policy.problems))
        self.settings = wanted
        durable = wanted.mode != "async" or policy.rules.has_modes
        self.recorder = Recorder(wanted, durable=durable)
        self.calls = Calls(
            self.recorder,
            mode=wanted.mode,
            rules=policy.rules,
            redactor=policy.redactor,
            operation_of=operation_of,
        )
        self.clients = ClientDirectory(wanted.clients)
        proxies = TrustedProxies(wanted.trusted_proxies, hops=wanted.trusted_hops, header=wanted.forwarding_header)
        self.reader = IdentityReader(
            self.clients,
            proxies,
            tokens=TokenVerifier(wanted.jwks_path, issuer=wanted.jwt_issuer, audience=wanted.jwt_audience),
            api_key_header=wanted.api_key_header,
            client_header=wanted.client_header,
            certificate_header=wanted.certificate_header,
            hash_key=wanted.hash_key,
            load_resolver=functools.partial(Resolver.load, wanted.resolver),
        )
        self._exit_timeout_s = wanted.exit_timeout_s
        self._attached: weakref.WeakSet[TracerProvider] = weakref.WeakSet()
        self._provider_checked = False
        self._ended = False
        self._after_sigterm: Callable[[int, FrameType | None], Any] | None = None
        problems = [*wanted.problems, *proxies.problems]
        if policy.redactor is not None and settings.is_also_theirs(wanted.destination):
            problems.append(
                "rules redact, and your own OTLP exporter sends the same spans to the same place as they are: what arrives "
                "first is the record; set OTEL_TRACES_EXPORTER=none, or have it export elsewhere"
            )
        for problem in problems:
            _log.warning("read settings of otel-audit: %s", problem)

    def install(self) -> None:
        """Attach to everything there is, and to what will come."""
        self._attach_later_providers()
        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            self.attach(provider)
        else:
            self._complain_of(provider)
        propagator = IdentityPropagator(self.reader, self.provide)
        propagate.set_global_textmap(CompositePropagator([propagate.get_global_textmap(), propagator]))
        _stay_a_propagator(propagator)
        try:
            observe(self.recorder)
        except Exception as e:
            _log.warning("make metrics of otel-audit: %s; calls are audited all the same", e)
        watch_requests()
        adapt_frameworks(self.calls, propagator)
        _uvicorn.watch_peers(self.provide, self._on_startup)
        _uvicorn.watch_servers(self._catch_sigterm)
        atexit.register(self.end)
        os.register_at_fork(after_in_child=self._after_fork)
        self.recorder.forked = self._after_fork
        self._catch_sigterm()

    # --- tracer providers ------------------------------------------------------------------------------------------------
    def attach(self, provider: TracerProvider) -> None:
        """Give `provider` the span processor and the sampler; a second time does nothing."""
        if provider in self._attached:
            return
        self._attached.add(provider)
        processor = AuditSpanProcessor(self.calls, exit_timeout_s=self._exit_timeout_s)
        provider.add_span_processor(processor)
        provider.sampler = AuditSampler(provider.sampler, child_spans=self.settings.child_spans)
        # Tracers copy the provider's sampler when they are made; some may be older than we are.
        for tracer in list(getattr(provider, "_tracers", {}).values()):
            tracer.sampler = provider.sampler

    def _attach_later_providers(self) -> None:
        original = TracerProvider.__init__

        @functools.wraps(original)
        def init(provider: TracerProvider, *args: Any, **kwargs: Any) -> None:
            original(provider, *args, **kwargs)
            try:
                self.attach(provider)
            except Exception:
                _log.exception("install otel-audit on a new tracer provider; the calls it traces are not audited")

        TracerProvider.__init__ = init  # type: ignore[method-assign, assignment]  # no hook exists for this

    def _complain_of(self, provider: trace.TracerProvider) -> None:
        """Say so when spans are made by something that is not of the SDK: it has no processors, so nothing is audited."""
        inner = getattr(provider, "provider", None)  # logfire's stands in front of the SDK's
        if isinstance(provider, trace.ProxyTracerProvider) or isinstance(inner, TracerProvider):
            return
        kind = f"{type(provider).__module__}.{type(provider).__qualname__}"
        hint = "let the OpenTelemetry SDK make spans"
        if kind.startswith("ddtrace."):
            hint = "set DD_TRACE_OTEL_ENABLED=false, or start with: ddtrace-run opentelemetry-instrument ..."
        _log.warning("install otel-audit: the tracer provider is %s; NO CALL IS AUDITED that it traces; %s", kind, hint)

    def provide(self) -> None:
        """With the first request or job: if nobody has configured OpenTelemetry by now, nothing would be recorded; do it.

        That is the base install without `opentelemetry-distro`. An application that configures it in its own code has
        done so by its first request, and is left alone.
        """
        if self._provider_checked:
            return
        self._provider_checked = True
        try:
            if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
                # Nobody asked for traces: sample none, so that nothing but the audit changes.
                wanted = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(ALWAYS_OFF)
                trace.set_tracer_provider(TracerProvider(sampler=wanted, shutdown_on_exit=False))
        except Exception as e:
            _log.warning("configure OpenTelemetry for otel-audit: %s; install opentelemetry-distro", e)

    def _on_startup(self) -> None:
        """A server is about to serve: record that, and ship what dead processes have left, before the first call."""
        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            self.recorder.begin(provider.resource)
        self.reader.prepare()

    # --- the end of the process ------------------------------------------------------------------------------------------
    def end(self) -> None:
        """Deliver what is waiting, for at most the exit timeout, and say what could not be; once."""
        self.recorder.look_for_fork()
        if self._ended:
            return
        self._ended = True
        self.recorder.stop()
        shipper = self.recorder.shipper
        if not shipper.close(self._exit_timeout_s):
            _log.warning(
                "ship audit records to %s: not all were delivered before the process ended (waited %g s); they are safe in "
                "%s, and the next process that spools there ships them",
                shipper.destination,
                self._exit_timeout_s,
                self.recorder.spool.folder,
            )

    def _catch_sigterm(self) -> None:
        """Deliver also when SIGTERM ends the process without Python's exit functions: flask run, plain scripts, uvicorn.

        Only where nobody else handles the signal. uvicorn puts this handler back and raises the signal again once it has
        shut down; servers with a handler of their own replace ours and end through Python's exit functions.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        theirs = signal.getsignal(signal.SIGTERM)
        if theirs is not signal.SIG_DFL:
            # ddtrace-run is there before us, and its handler ends the process past Python's exit functions.
            if not callable(theirs) or not str(getattr(theirs, "__module__", "")).startswith("ddtrace."):
                return
            self._after_sigterm = theirs
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._let_calls_end()
            self.end()
        finally:
            if self._after_sigterm is not None:
                self._after_sigterm(signum, frame)
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        # Still here: process 1 of a container, which the kernel spares. It goes on, and so do we.
        self._ended = False
        self.recorder.goes_on()
        signal.signal(signum, self._on_sigterm)

    def _let_calls_end(self) -> None:
        """Wait a moment for calls in other threads: one that is answered may not have ended its span yet."""
        deadline = time.monotonic() + _LET_END_S
        while self.calls.open_calls > 0 and time.monotonic() < deadline:
            time.sleep(0.005)

    def _after_fork(self) -> None:
        self.calls.after_fork()
        self.reader.after_fork()
        self._ended = False
        self.recorder.after_fork()


def _stay_a_propagator(own: TextMapPropagator) -> None:
    """Stay beside whatever propagator the application, or a library such as logfire, sets later.

    Who has imported `set_global_textmap` by name before now still replaces ours: `otel-audit check` tells.
    """
    original = propagate.set_global_textmap

    @functools.wraps(original)
    def set_global_textmap(http_text_format: TextMapPropagator) -> None:
        original(http_text_format)
        try:
            original(CompositePropagator([http_text_format, own]))
        except Exception as e:
            _log.warning("stay a propagator beside %r: %s; callers are not named", http_text_format, e)

    propagate.set_global_textmap = set_global_textmap
