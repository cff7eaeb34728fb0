"""What is read from outside and read again when it changes: the client directory, the keys of JWTs.

A file is looked at at most once a second; a callable is called again after a minute. Reading is done in a thread of its
own, so that no request waits for it, except that the first ones wait a moment for what a callable gives for the first
time. What cannot be read leaves what was known.
"""

import logging
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import ConfigError

__all__ = ["Watched", "load_callable", "names_callable", "read_file"]

_log = logging.getLogger("otel_audit.capture")

_LOOK_INTERVAL_S: Final = 1.0
_CALL_INTERVAL_S: Final = 60.0
_FIRST_CALL_WAIT_S: Final = 2.0
_CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


def names_callable(text: str) -> bool:
    """Whether `text` has the form `module:callable`, and is no file."""
    return _CALLABLE.match(text) is not None and not Path(text).exists()


def load_callable(text: str, variable: str) -> Callable[..., Any]:
    """The callable that `module:callable` names; raises `ConfigError`.

    Not to be called before the application is imported: a module of its own would drag in frameworks that are not
    instrumented yet.
    """
    module, _, path = text.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as e:
        hint = f"set {variable} to module:callable that the service can import"
        raise ConfigError("import", text, f"{type(e).__name__}: {e}", hint) from e
    if not callable(found):
        raise ConfigError("import", text, "cannot be called", f"set {variable} to module:callable")
    return found  # type: ignore[no-any-return]


def read_file(path: str, operation: str, bytes_max: int) -> bytes:
    """The bytes of a file that must not be larger than `bytes_max`; raises `ConfigError` or `OSError`."""
    with Path(path).open("rb") as file:
        body = file.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise ConfigError(operation, path, f"larger than {bytes_max} bytes", "split off what does not belong there")
    return body


class Watched(ABC):
    """Contents that come from a file or a callable.

    Args:
        source: the file, or `module:callable` where `callable_allowed`; None: there is nothing to read.
        what: what it is, for messages: "client directory".
        hint: what to do when it cannot be read.
        callable_allowed: whether the source may be a callable.

    Never raises. `_take` runs in one thread at a time, under `_reading`; it replaces contents as a whole.
    """

    def __init__(self, source: str | None, what: str, hint: str, *, callable_allowed: bool = False) -> None:
        self._source = source
        self._what = what
        self._hint = hint
        self._calls = source is not None and callable_allowed and names_callable(source)
        self._reading = threading.Lock()
        self._seen: tuple[int, int, int] | None = None  # the file's state when last read; under `_reading`
        self._complained = ""  # the last complaint; under `_reading`
        self._first = threading.Event()  # set when a callable has answered for the first time
        self._look_after_s = 0.0  # written by whoever looks; a race means one more look
        self.version = 0
        """Grows whenever the contents change, so that what was derived from them can be forgotten."""

    @abstractmethod
    def _take(self, source: str) -> bool:
        """Read `source` and keep what is in it; whether that is something new. May raise."""

    @abstractmethod
    def __len__(self) -> int:
        """How much is known."""

    @property
    def empty(self) -> bool:
        """Whether there is no source, so that there will never be anything."""
        return self._source is None

    def prepare(self) -> None:
        """Call a callable for the first time, and wait a moment for it; the application must be imported."""
        if self._calls and not self._first.is_set():
            self.refresh()
            self._first.wait(_FIRST_CALL_WAIT_S)

    def refresh(self) -> None:
        """Have the source read again if it is time to; returns at once."""
        now_s = time.monotonic()
        if now_s < self._look_after_s or self._source is None:
            return
        self._look_after_s = now_s + (_CALL_INTERVAL_S if self._calls else _LOOK_INTERVAL_S)
        if (self._calls or self._state() != self._seen) and not self._reading.locked():
            try:
                threading.Thread(target=self._read, name=f"otel-audit {self._what}", daemon=True).start()
            except RuntimeError:  # the interpreter is shutting down, or the system is out of threads
                return

    def after_fork(self) -> None:
        """Forget a reader thread of the parent process, which this process does not have."""
        self._reading = threading.Lock()
        if not self._first.is_set():
            self._first = threading.Event()
            self._look_after_s = 0.0

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self._source or "").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        with self._reading:
            if not self._calls:
                state = self._state()
                if state is not None and state == self._seen:
                    return
                self._seen = state
            try:
                if self._take(self._source or ""):
                    self.version += 1
                self._complained = ""
            except ConfigError as e:
                self._complain(str(e))
            except Exception as e:
                self._complain(f"read {self._what} {self._source}: {e if str(e) else type(e).__name__}; {self._hint}")
            finally:
                self._first.set()

    def _complain(self, text: str) -> None:
        if text != self._complained:
            self._complained = text
            _log.warning("%s (%d known so far stay)", text, len(self))
