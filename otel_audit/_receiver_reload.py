"""Files that are read again when they change, while what is in use stays in use until the new can be."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from otel_audit.errors import ConfigError

__all__ = ["ReloadStats", "Reloader", "Watched"]

_log = logging.getLogger("otel_audit.receiver")
_QUIET_S: Final = 600.0  # a fault that stays is told again after this long
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReloadStats:
    """Counters since start.

    Args:
        reloads: how often changed files were taken into use.
        failures: how often they could not be.
        stale: how many of them are now in use as they were before, because what they hold now cannot be used.
    """

    reloads: int = 0
    failures: int = 0
    stale: int = 0


class Watched(Generic[T]):
    """What some files hold, as far as it can be used.

    `current` is replaced as a whole by the thread that calls `poll`; any thread may read it.

    Args:
        what: they are, for the log.
        paths: the files.
        load: reads them; raises `ConfigError`.
        interval_s: how often to look at them.
        look: looks at what is in use each time, changed or not; must not raise.

    Raises what `load` raises: at start there is nothing else to use.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[str],
        load: Callable[[], T],
        interval_s: float,
        look: Callable[[T], None] = lambda _: None,
    ) -> None:
        self._what, self._paths, self._load, self._look_at = what, tuple(paths), load, look
        self.interval_s = interval_s
        self._seen = self._look()
        self.current = load()
        self.reloads = self.failures = 0
        self.stale = False
        self._told: tuple[str, float] = ("", 0.0)
        self.due_s = time.monotonic() + interval_s
        look(self.current)

    def poll(self) -> None:
        """Take the files into use if they have changed, or could not be used when last looked at; never raises."""
        self._read_again()
        self._look_at(self.current)

    def _read_again(self) -> None:
        seen = self._look()  # before reading: what changes meanwhile is then seen the next time
        if seen == self._seen and not self.stale:
            return
        try:
            loaded = self._load()
        except Exception as e:
            self.failures += 1
            self.stale = True
            self._complain(e)
            return
        self._seen = seen
        self.current = loaded
        self.reloads += 1
        self.stale = False
        self._told = ("", 0.0)
        _log.info("%s were read again and are in use", self._what)

    def _complain(self, error: Exception) -> None:
        text, now_s = str(error), time.monotonic()
        told, told_s = self._told
        if text == told and now_s - told_s < _QUIET_S:
            return
        self._told = (text, now_s)
        trace = None if isinstance(error, ConfigError) else error
        _log.error("%s stay as they were, what is there now cannot be used: %s", self._what, text, exc_info=trace)

    def _look(self) -> tuple[object, ...]:
        """What changes when a file does, by whatever means it is replaced."""
        return tuple(map(_state, self._paths))


def _state(path: str) -> object:
    try:
        status = os.stat(path)  # noqa: PTH116 - one call, for any kind of path
    except OSError as e:
        return e.errno
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Reloader:
    """Looks at watched files on a thread of its own.

    Args:
        watched: the files.
    """

    def __init__(self, watched: Sequence[Watched[Any]]) -> None:
        self._watched = watched
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-reload", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        if self._watched:
            self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Look no more, and wait up to `timeout_s` for a look that is under way."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def stats(self) -> ReloadStats:
        """The counters now."""
        return ReloadStats(
            sum(w.reloads for w in self._watched),
            sum(w.failures for w in self._watched),
            sum(w.stale for w in self._watched),
        )

    def _run(self) -> None:
        while True:
            next_s = min(w.due_s for w in self._watched)
            if self._stopping.wait(max(0.0, next_s - time.monotonic())):
                return
            now_s = time.monotonic()
            for watched in self._watched:
                if watched.due_s <= now_s:
                    watched.poll()
                    watched.due_s = now_s + watched.interval_s
