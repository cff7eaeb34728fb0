"""`audited`: a decorator and a context manager that names what is done, and records what runs outside of any call.

Within a call it annotates the call. Outside of any (a scheduled job, a consumer of messages, a task that goes on after the
response) it makes a call of its own, a `Job`, with a record when it ends.
"""

import functools
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.status import Status, StatusCode

from otel_audit import __version__, names
from otel_audit.capture.annotate import add_to, as_text, said_of, warn_once
from otel_audit.capture.call import CALL_KEY, Call, current_call
from otel_audit.errors import AuditError, CaptureError

__all__ = ["Audited", "Job", "audited"]

_log = logging.getLogger("otel_audit.capture")

P = ParamSpec("P")
R = TypeVar("R")
Target = str | int | Callable[..., object] | None
"""Id of the thing acted on, or what gives it from a function's arguments."""


class Job(Call):
    """A call that nobody made over the network; its record is that of its own span."""

    is_job = True

    __slots__ = ()


@overload
def audited(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def audited(action: str | None = None, target: Target = None, **more: object) -> "Audited": ...
def audited(action: Any = None, target: Target = None, **more: object) -> Any:
    """A decorator, and a context manager, that names what is done.

    Within a call it annotates the call. Outside of any it makes a record of its own when it ends: of outcome `error` if by
    an exception, which goes on. Functions and generators, async ones too; a function's signature and its types stay.

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

    Raises:
        CaptureError: in mode fail-closed, when what would begin cannot be audited.
    """
    if callable(action):
        return Audited(None, target, more)(action)
    return Audited(action, target, more)


class Audited:
    """What `audited` makes; it may be used any number of times, from any thread or task."""

    def __init__(self, action: str | None, target: Target, more: Mapping[str, object]) -> None:
        self._action = action
        self._target = target
        self._more = more
        self._open: list[_Run] = []  # of `with`; `list` operations are atomic

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, audited."""
        begin = self._begin(function)
        wrapped: Callable[..., Any]
        if inspect.isasyncgenfunction(function):
            wrapped = _wrap_async_generator(function, begin)
        elif inspect.isgeneratorfunction(function):
            wrapped = _wrap_generator(function, begin)
        elif inspect.iscoroutinefunction(function):

            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with begin(args, kwargs).current():
                    return await function(*args, **kwargs)

        else:

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with begin(args, kwargs).current():
                    return function(*args, **kwargs)

        return cast("Callable[P, R]", functools.wraps(function)(wrapped))

    def __enter__(self) -> None:
        run = _Run(self._action or "audited", None if callable(self._target) else self._target, self._more)
        self._open.append(run)
        _ENTERED.set((*_ENTERED.get(), (self, run)))
        run.attach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        entered = _ENTERED.get()
        # Left in another context than it was entered in (a generator's, a thread pool's): the newest of its own.
        own = next((r for o, r in reversed(entered) if o is self and r in self._open), None)
        run = self._open[-1] if own is None else own
        self._open.remove(run)
        _ENTERED.set(tuple(pair for pair in entered if pair[1] is not run))
        run.detach()
        run.end(error)

    def _begin(self, function: Callable[..., object]) -> "_Begin":
        action = self._action or getattr(function, "__name__", "") or "audited"
        target = _target_of(function, self._target)
        return lambda args, kwargs: _Run(action, target(args, kwargs), self._more)


def _target_of(function: Callable[..., object], target: Target) -> Callable[[tuple[Any, ...], dict[str, Any]], object]:
    """What gives the target from a call's arguments; never raises."""
    if not callable(target):
        return lambda _args, _kwargs: target
    asked = target
    try:
        signature: inspect.Signature | None = inspect.signature(function)
        wanted = list(inspect.signature(asked).parameters)
    except (TypeError, ValueError):
        signature, wanted = None, []
    by_name = signature is not None and all(name in signature.parameters for name in wanted)

    def give(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        try:
            if signature is None or not by_name:
                return asked(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return asked(*(bound.arguments[name] for name in wanted))
        except Exception:
            warn_once(f"find the target of {getattr(function, '__qualname__', 'a function')}: its target= raised")
            _log.debug("find the target of a function", exc_info=True)
            return None

    return give


_NOT_AUDITED: Final = "its spans do not reach otel-audit"
_REMEDY: Final = (
    "start with opentelemetry-instrument, or call otel_audit.install() before anything else makes spans; "
    "otel-audit check tells what is in the way"
)


# --- one run --------------------------------------------------------------------------------------------------------------
class _Run:
    """One run of something audited: a part of the call that is being served, or a job with a span of its own."""

    __slots__ = ("_job", "_span", "_token")

    def __init__(self, action: str, target: object, more: Mapping[str, object]) -> None:
        self._span: Span | None = None
        self._job: Job | None = None
        self._token: Any = None
        try:
            said = said_of({**more, "action": action, "target": target})
            call = current_call()
            if call is None or call.recorded or call.is_job:
                self._start(action, said, call)
            else:
                add_to(call, said)
        except AuditError:
            raise  # mode fail-closed: what cannot be audited does not begin
        except Exception:
            _log.warning("audit %s: left out", action, exc_info=_log.isEnabledFor(logging.DEBUG))

    def _start(self, action: str, said: dict[str, Any], outer: Call | None) -> None:
        job = Job({} if outer is None else outer.identity)  # what a call leaves running is still on its caller's behalf
        job.annotations = said
        capture = sys.modules.get("otel_audit.capture.autoload")  # absent: nobody has installed it
        mode = None if capture is None else capture.provide()
        tracer = trace.get_tracer("otel_audit", __version__)
        own = context.set_value(CALL_KEY, job)
        span = tracer.start_span(action, own, SpanKind.INTERNAL, attributes={names.ACTION: action, **said})
        if job.span is None:  # no span processor of ours has seen it start
            if mode == "fail-closed":
                raise CaptureError("audit job", action, _NOT_AUDITED, _REMEDY)
            warn_once(f"audit what runs outside of a call: {_NOT_AUDITED}, so it is NOT AUDITED; {_REMEDY}")
        self._span, self._job = span, job

    def attach(self) -> None:
        """Make this job the current call; nothing within a call."""
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span, context.set_value(CALL_KEY, self._job)))

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
            with self.ended():
                yield
        finally:
            self.detach()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ended with the body."""
        try:
            yield
        except BaseException as e:
            self.end(e)
            raise
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """End the job's span, which makes its record; within a call nothing: its own end tells."""
        span, self._span = self._span, None
        if span is None:
            return
        try:
            if error is not None and not _in_order(error):
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {as_text(error)}"))
            elif getattr(getattr(span, "status", None), "status_code", None) is StatusCode.UNSET:
                span.set_status(StatusCode.OK)
        except Exception:
            _log.debug("record the end of a job", exc_info=True)
        span.end()


_Begin = Callable[[tuple[Any, ...], dict[str, Any]], _Run]
_ENTERED: Final[ContextVar[tuple[tuple["Audited", _Run], ...]]] = ContextVar("otel_audit_entered", default=())
"""The runs of the `with` statements that are open here, the innermost last."""


def _in_order(error: BaseException) -> bool:
    return isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and not error.code)


# --- generators: current while they run, not while they wait, since they share their context with whoever iterates ------
def _wrap_generator(function: Callable[..., Any], begin: _Begin) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        run = begin(args, kwargs)
        with run.ended():
            made = function(*args, **kwargs)
            step, given = made.send, None
            while True:
                run.attach()
                try:
                    item = step(given)
                except StopIteration as e:
                    return e.value
                finally:
                    run.detach()
                try:
                    step, given = made.send, (yield item)
                except GeneratorExit:
                    made.close()
                    raise
                except BaseException as e:
                    step, given = made.throw, e

    return generate


def _wrap_async_generator(function: Callable[..., Any], begin: _Begin) -> Callable[..., Any]:
    async def generate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run = begin(args, kwargs)
        with run.ended():
            made = function(*args, **kwargs)
            step, given = made.asend, None
            while True:
                run.attach()
                try:
                    item = await step(given)
                except StopAsyncIteration:
                    return
                finally:
                    run.detach()
                try:
                    step, given = made.asend, (yield item)
                except GeneratorExit:
                    await made.aclose()
                    raise
                except BaseException as e:
                    step, given = made.athrow, e

    return generate
