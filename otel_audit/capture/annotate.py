"""What the application says about a call: `annotate` in a handler, and `audited` on a function.

Both only ever add to the record. Neither raises, whatever it is given; a record that cannot be annotated is still made.
"""

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.status import Status, StatusCode

from otel_audit import __version__, names
from otel_audit.capture.call import CALL_KEY, Call, current_call
from otel_audit.errors import AuditError

__all__ = ["Job", "annotate", "audited"]

_log = logging.getLogger("otel_audit.capture")

P = ParamSpec("P")
R = TypeVar("R")
Target = str | int | Callable[..., object] | None

OUTCOMES: Final = ("success", "denied", "failure", "error", "unknown")
_ANNOTATIONS_MAX: Final = 64
_KEY_CHARS_MAX: Final = 128
_VALUE_CHARS_MAX: Final = 4096
_NAMED: Final[Mapping[str, str]] = {
    "action": names.ACTION,
    "target": names.TARGET_ID,
    "reason": names.REASON,
    "user": names.USER_ID[0],
    "service": names.SERVICE,
}
_INT64: Final = range(-(1 << 63), 1 << 63)
_OURS: Final = ("audit.source.", "audit.loss.", names.INCOMPLETE)
"""What capture says about itself; an application that could say it could hide a gap."""

_warned: set[str] = set()  # of a fixed few texts; each is said once in a process


class Job(Call):
    """A call that nobody made over the network: a job, a consumed message; its record is that of its own span."""

    __slots__ = ()


def annotate(
    action: str | None = None,
    target: str | int | None = None,
    *,
    reason: str | None = None,
    outcome: str | None = None,
    user: str | None = None,
    service: str | None = None,
    **attributes: object,
) -> bool:
    """Say more about the call that is being served; what was said last counts.

    Args:
        action: what is being done, such as `merge`.
        target: id of the thing acted on.
        reason: why, as a person would put it.
        outcome: `success`, `denied`, `failure`, `error` or `unknown`, where the status says too little.
        user: id of the person on whose behalf.
        service: the service's name in the record.
        attributes: anything else; `note="x"` becomes `audit.note`. Texts (up to 4096 characters), bools and ints as they
            are, other values as text; None is left out. At most 64 of a call.

    Returns:
        Whether it is on the record: False outside of any call, and when the call's record has been made.
    """
    try:
        named = {"action": action, "target": target, "reason": reason, "outcome": outcome, "user": user}
        return _annotate(current_call(), _said({**attributes, **named, "service": service}))
    except Exception:
        _log.debug("annotate a call: left out", exc_info=True)
        return False


def _annotate(call: Call | None, said: Mapping[str, Any]) -> bool:
    if call is None:
        # Some instrumentations (aiohttp) keep the extracted context from the handler; the span is there all the same.
        span = trace.get_current_span()
        if getattr(span, "kind", None) is SpanKind.SERVER and span.is_recording():
            span.set_attributes(said)
            return True
        _log.debug("annotate a call: there is none here")
        return False
    if call.recorded:
        _log.debug("annotate a call: too late, its record has been made")
        return False
    known = call.annotations
    if known is None:
        known = call.annotations = {}
    if len(known) + len(said) > _ANNOTATIONS_MAX:
        room = _ANNOTATIONS_MAX - len(known)
        new = [k for k in said if k not in known][: max(room, 0)]
        if len(new) < sum(k not in known for k in said):
            _warn_once(f"annotate a call: over {_ANNOTATIONS_MAX} annotations of one call; the rest is left out")
        said = {k: v for k, v in said.items() if k in known or k in new}
    known.update(said)
    span_here = call.span
    if span_here is not None and span_here.is_recording():
        span_here.set_attributes(said)
    return True


def _said(given: Mapping[str, object]) -> dict[str, Any]:
    """The attributes that the arguments of `annotate` mean."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key == "outcome":
            if isinstance(value, str) and value in OUTCOMES:
                found[names.OUTCOME] = str(value)
            else:
                _warn_once(f"annotate a call: an outcome was left out that is none of {', '.join(OUTCOMES)}")
            continue
        known = _NAMED.get(key)
        name = known or _name(key)
        told = _as_text(value) or None if known else _value(value)
        if name is not None and told is not None:
            found[name] = told
    return found


def _name(key: str) -> str | None:
    name = key if key.startswith(names.AUDIT_PREFIX) else names.AUDIT_PREFIX + key
    if name.startswith(_OURS):
        _warn_once("annotate a call: audit.source.*, audit.loss.* and audit.incomplete are otel-audit's own; left out")
        return None
    return name[:_KEY_CHARS_MAX]


def _as_text(value: object) -> str | None:
    try:
        return str(value)[:_VALUE_CHARS_MAX]
    except Exception:  # the application's own class
        return None


def _value(value: object) -> str | bool | int | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INT64:
        return int(value)
    return _as_text(value)


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s; said once", text)


# --- audited ----------------------------------------------------------------------------------------------------------------
class audited:  # noqa: N801 - reads as a decorator
    """A decorator, and a context manager, that names what is done.

    Within a call it annotates the call. Outside of any (a job, a consumer of messages) it makes a call of its own, with a
    record when it ends: `error` if by an exception, which goes on. Sync and async functions and generators.

    ```python
    @audited(action="merge", target=lambda contact_id: contact_id)
    def merge(contact_id: str, other: str) -> None: ...

    with audited(action="nightly-sync"): ...
    ```

    Args:
        action: what is done; by default the function's name.
        target: id of the thing acted on, or a callable that gives it from those of the function's arguments that its
            own parameters name.
        more: as for `annotate`.
    """

    @overload
    def __new__(cls, action: Callable[P, R], /) -> Callable[P, R]: ...  # type: ignore[misc]  # `@audited` alone
    @overload
    def __new__(cls, action: str | None = None, target: Target = None, **more: Any) -> "audited": ...
    def __new__(cls, action: Any = None, target: Target = None, **more: Any) -> Any:
        """An `audited`; of a function alone, that function wrapped."""
        made = super().__new__(cls)
        if callable(action):
            made._set(None, target, more)
            return made(action)
        made._set(action, target, more)
        return made

    def _set(self, action: str | None, target: Target, more: dict[str, Any]) -> None:
        self._action = action
        self._target = target
        self._more = more
        self._open: list[_Scope] = []  # of `with`, in the thread or task that entered

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, audited; its signature stays."""
        begin = self._begin(function)
        if inspect.isasyncgenfunction(function):
            return cast("Callable[P, R]", _wrap_async_generator(function, begin))
        if inspect.isgeneratorfunction(function):
            return cast("Callable[P, R]", _wrap_generator(function, begin))
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: P.args, **kwargs: P.kwargs) -> Any:
                with begin(args, kwargs).current():
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", wait)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with begin(args, kwargs).current():
                return function(*args, **kwargs)

        return call

    def __enter__(self) -> None:
        scope = _Scope(self._action or "audited", None if callable(self._target) else self._target, self._more)
        self._open.append(scope)
        scope.attach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        scope = self._open.pop()
        scope.detach()
        scope.end(error)

    def _begin(self, function: Callable[..., object]) -> "Callable[[tuple[Any, ...], dict[str, Any]], _Scope]":
        action = self._action or getattr(function, "__name__", "") or "audited"
        target = _target_of(function, self._target)
        more = self._more
        return lambda args, kwargs: _Scope(action, target(args, kwargs), more)


def _target_of(function: Callable[..., object], target: Target) -> Callable[[tuple[Any, ...], dict[str, Any]], object]:
    """What gives the target from a call's arguments; never raises."""
    if not callable(target):
        return lambda _args, _kwargs: target
    asked = target
    try:
        signature = inspect.signature(function)
        wanted = list(inspect.signature(asked).parameters.values())
        by_name = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in wanted)
    except (TypeError, ValueError):
        signature, wanted, by_name = None, [], False
    if signature is not None and not all(p.name in signature.parameters for p in wanted):
        by_name = False

    def give(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        try:
            if signature is None or not by_name:
                return asked(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return asked(**{p.name: bound.arguments[p.name] for p in wanted})
        except Exception:
            _warn_once(f"find the target of {getattr(function, '__qualname__', 'a function')}: its target= raised")
            _log.debug("find the target of a function", exc_info=True)
            return None

    return give


_Begin = Callable[[tuple[Any, ...], dict[str, Any]], "_Scope"]


def _wrap_generator(function: Callable[..., Any], begin: _Begin) -> Callable[..., Any]:
    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with begin(args, kwargs).apart():
            return (yield from function(*args, **kwargs))

    return generate


def _wrap_async_generator(function: Callable[..., Any], begin: _Begin) -> Callable[..., Any]:
    @functools.wraps(function)
    async def generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with begin(args, kwargs).apart():
            made = function(*args, **kwargs)
            try:
                async for item in made:
                    yield item
            finally:
                await made.aclose()

    return generate


class _Scope:
    """One run of something audited: of a call that is being served, or a job with a span of its own."""

    __slots__ = ("_job", "_span", "_token")

    def __init__(self, action: str, target: object, more: Mapping[str, Any]) -> None:
        self._span: Span | None = None
        self._job: Job | None = None
        self._token: Any = None
        try:
            said = _said({**more, "action": action, "target": target})
            call = current_call()
            inner = call is None and getattr(trace.get_current_span(), "kind", None) is SpanKind.SERVER
            if inner or (call is not None and not isinstance(call, Job) and not call.recorded):
                _annotate(call, said)
            else:
                self._start(action, said)
        except AuditError:
            raise  # mode fail-closed: what cannot be audited does not begin
        except Exception:
            _log.warning("audit %s: left out", action, exc_info=_log.isEnabledFor(logging.DEBUG))

    def _start(self, action: str, said: Mapping[str, Any]) -> None:
        job = Job({})
        own = context.set_value(CALL_KEY, job)
        tracer = trace.get_tracer("otel_audit", __version__)
        span = tracer.start_span(action, own, SpanKind.INTERNAL, attributes={names.ACTION: action, **said})
        if not span.is_recording():
            _warn_once(
                "audit what runs outside of a call: OpenTelemetry is not configured, so it is NOT AUDITED; start with "
                "opentelemetry-instrument, or call otel_audit.install()"
            )
        job.annotations = dict(said)
        job.span = cast("Any", span)
        self._span, self._job = span, job

    def attach(self) -> None:
        """Make this job's span the current one; nothing within a call."""
        if self._span is not None:
            own = trace.set_span_in_context(self._span, context.set_value(CALL_KEY, self._job))
            self._token = context.attach(own)

    def detach(self) -> None:
        """Go back to what was current."""
        if self._token is not None:
            token, self._token = self._token, None
            context.detach(token)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Current while the body runs, and ended with it."""
        self.attach()
        try:
            with self.apart():
                yield
        finally:
            self.detach()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Ended with the body, and never current: a generator shares its context with whoever iterates it."""
        try:
            yield
        except BaseException as e:
            self.end(e)
            raise
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """End the job's span, which makes its record; within a call nothing: its own end tells."""
        span = self._span
        if span is None:
            return
        self._span = None
        try:
            if error is not None and not _in_order(error):
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {_as_text(error)}"))
            elif getattr(getattr(span, "status", None), "status_code", None) is StatusCode.UNSET:
                span.set_status(StatusCode.OK)
        except Exception:
            _log.debug("record the end of a job", exc_info=True)
        try:
            span.end()
        except Exception:
            _log.warning("record the end of a job: left out", exc_info=_log.isEnabledFor(logging.DEBUG))


def _in_order(error: BaseException) -> bool:
    return isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and not error.code)
