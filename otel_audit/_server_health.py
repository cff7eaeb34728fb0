"""Whether senders should come here now: judged by a thread of its own, so that it is known without anyone asking the disk.

What is looked at: how much room the disk has, whether sealing works, whether a write hangs. A disk that does not answer
keeps this thread waiting as well; whoever asks is then told that, because the last look is too old.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from otel_audit.auditlog import AuditLog, LogStats

__all__ = ["Disk", "Health", "HealthSettings"]

_log = logging.getLogger("otel_audit.server")
_MIB: Final = 1 << 20
_ROOM_AGAIN: Final = 1.125  # times the level: a disk at the level must not turn readiness on and off


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When a log counts as not ready.

    Args:
        every_s: time between two looks.
        stale_s: age from which the last look says that the disk does not answer; also how long one write may take.
        seal_failed_s: how long sealing may fail. Until then only files wait that readers read as well.
    """

    every_s: float = 0.5
    stale_s: float = 5.0
    seal_failed_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a log, in bytes.

    Args:
        free: what is left to the service's user.
        ready: with less the service is not ready.
        reserve: with less appends are refused.
    """

    free: int
    ready: int
    reserve: int


class Health:
    """A thread beside a log that is open for writing.

    Args:
        log: which one.
        settings: limits.
        clock: monotonic seconds, of the log's clock.
    """

    def __init__(
        self, log: AuditLog, settings: HealthSettings = HealthSettings(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._settings = settings
        self._clock = clock
        reserve = log.reserve_bytes
        wanted = log.settings.disk_ready_bytes
        self._ready_bytes = max(2 * reserve if wanted is None else wanted, reserve)
        # Written by `look` alone, read by anyone.
        self._looked_s = clock()
        self._disk = Disk(_free(log), self._ready_bytes, reserve)
        self._full = False
        self._seal_told = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-audit-health", daemon=True)
        self.look()

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End; a look that hangs is left to itself."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    @property
    def disk(self) -> Disk:
        """The disk when last looked at."""
        return self._disk

    def reasons(self) -> list[str]:
        """Why the log is not ready, a sentence each; empty when it is. Never waits for the disk."""
        now_s = self._clock()
        stats = self._log.stats()
        found = []
        if stats.broken:
            found.append(f"nothing is taken until a restart: {stats.broken}")
        if now_s - self._looked_s > self._settings.stale_s:
            found.append(f"the disk has not answered for {now_s - self._looked_s:.0f} s")
        writing_s = stats.committing_since_s
        if writing_s is not None and now_s - writing_s > self._settings.stale_s:
            found.append(f"a write to the disk has been under way for {now_s - writing_s:.0f} s")
        if self._full:
            found.append(_full_text(self._disk))
        if _long(stats, now_s, self._settings.seal_failed_s):
            found.append(f"sealing has failed for {now_s - (stats.seal_failed_s or now_s):.0f} s: {stats.seal_error}")
        return found

    # --- looking --------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._ending.wait(self._settings.every_s):
            try:
                self.look()
            except OSError as e:  # the folder is gone, or the disk is: what is known gets old, and so is told
                _log.warning("look at the disk of %s: %s", self._log.directory, e.strerror or e)
                self._ending.wait(self._settings.stale_s)

    def look(self) -> None:
        """Look once; raises OSError if the disk cannot be asked."""
        free = _free(self._log)
        self._disk = Disk(free, self._ready_bytes, self._log.reserve_bytes)
        self._looked_s = self._clock()
        self._judge_disk()
        self._judge_sealing()

    def _judge_disk(self) -> None:
        free = self._disk.free
        full = free < (self._ready_bytes * _ROOM_AGAIN if self._full else self._ready_bytes)
        if full and not self._full:
            _log.warning(
                "%s; free space: it then goes on by itself", _full_text(self._disk), extra={"free_bytes": free}
            )
        elif self._full and not full:
            _log.info("the disk has room again: %d MiB are left", free // _MIB, extra={"free_bytes": free})
        self._full = full

    def _judge_sealing(self) -> None:
        stats = self._log.stats()
        failing = _long(stats, self._clock(), self._settings.seal_failed_s)
        if failing and not self._seal_told:
            _log.error(
                "sealing has failed for %.0f s, the service is not ready: %s",
                self._settings.seal_failed_s,
                stats.seal_error,
            )
        elif self._seal_told and not failing:
            _log.info("sealing works again")
        self._seal_told = failing


def _free(log: AuditLog) -> int:
    disk = os.statvfs(log.directory)
    return disk.f_bavail * disk.f_frsize


def _full_text(disk: Disk) -> str:
    return (
        f"the disk is nearly full: {disk.free:,} bytes are left, not ready below {disk.ready:,}, "
        f"appends are refused below {disk.reserve:,}"
    )


def _long(stats: LogStats, now_s: float, limit_s: float) -> bool:
    return stats.seal_failed_s is not None and now_s - stats.seal_failed_s >= limit_s
