"""The service watches the sources of its records: it logs when one begins, ends, or misses records for too long.

What the tracker suspects is looked up in the log before anyone is told: memory may have forgotten, the log has not.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from otel_audit.auditlog import AuditLog
from otel_audit.numbers import Range
from otel_audit.tracker import SOURCES_MAX, Event, Hole

if TYPE_CHECKING:
    from otel_audit.sources import Source

__all__ = ["Watch"]

_log = logging.getLogger("otel_audit.sources")
_EVERY_S: Final = 5.0
_STOP_S: Final = 10.0
_RANGES_SAID: Final = 10
_REST: Final = 10  # times as long as the last look took, so that looking never takes more than a tenth of a core
_MEMORY_BYTES: Final = 128 << 20


class Watch:
    """A thread beside a log that is open for writing.

    Args:
        log: whose sources are watched.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._tracker = log.tracker
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-audit-watch", daemon=True)

    def start(self) -> None:
        """Begin; what the log already says of its sources is read first."""
        self._thread.start()

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """End; a look at the log that is under way may go on in the background."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        every_s = min(self._tracker.late_s / 4, _EVERY_S)
        learned = failed = False
        while True:
            started_s = time.monotonic()
            try:
                if not learned:
                    self._learn()
                    learned = True
                self._tell_events()
                self._tell_losses()
                failed = False
            except Exception as e:  # what cannot be looked up now is looked up again; nothing else depends on it
                if not failed:
                    _log.warning("look for missing records: %s; it is tried again", e)
                failed = True
            took_s = time.monotonic() - started_s
            if self._ending.wait(max(every_s, _REST * took_s)):
                self._tell_events()
                return

    # --- what the log says --------------------------------------------------------------------------------------------------
    def _survey(self, ids: Collection[str] | None = None) -> "list[Source]":
        from otel_audit.numbers import read_notes
        from otel_audit.query import Engine, Query, QuerySettings
        from otel_audit.reader import LogReader
        from otel_audit.sources import survey

        directory = self._log.directory
        engine = Engine(QuerySettings(memory_bytes=_MEMORY_BYTES, threads=1))
        try:
            with Query(LogReader.open(directory).snapshot(), engine) as query:
                return survey(query, read_notes(directory), ids=ids, late_s=self._tracker.late_s)
        finally:
            engine.close()

    def _learn(self) -> None:
        """Take over what earlier runs of the service knew; what they told of is not told again."""
        if not self._log.stats().last_seq:
            return
        found = sorted(self._survey(), key=lambda s: s.arrived_us)[-SOURCES_MAX:]
        for source in found:
            told = [(g.first, g.last) for g in source.gaps if g.verdict != "late"]
            self._take(source, told)
        missing = [
            n for s in found if (n := s.missing_count - s.missing.get("late", 0))
        ]  # what is late is told in time
        if missing:
            _log.warning(
                "%d records of %d sources are missing in the log; see otel-audit gaps", sum(missing), len(missing)
            )

    def _take(self, source: "Source", told: Collection[Range] = ()) -> None:
        ended = source.state == "clean"
        self._tracker.learn(source.id, source.there(), service=source.service, ended=ended, told=told)

    # --- telling --------------------------------------------------------------------------------------------------------------
    def _tell_events(self) -> None:
        for event in self._tracker.events():
            if event.kind == "stop":
                _log.info("source %s of %s ended in good order", event.source, event.service, extra=_about(event))
            else:
                _log.info("source %s of %s began", event.source, event.service, extra=_about(event))

    def _tell_losses(self) -> None:
        suspects = self._tracker.suspects()
        if not suspects:
            return
        found = {s.id: s for s in self._survey({h.source for h in suspects})}
        for source in found.values():
            self._take(source)
        holes: defaultdict[str, list[Hole]] = defaultdict(list)
        for hole in self._tracker.suspects():
            if hole.source in found:
                holes[hole.source].append(hole)
        for name, own in holes.items():
            self._tell(found[name], own)
            for hole in own:
                self._tracker.told(hole)

    def _tell(self, source: "Source", holes: Collection[Hole]) -> None:
        missing = sum(h.last - h.first + 1 for h in holes)
        numbers = [str(h.first) if h.first == h.last else f"{h.first}-{h.last}" for h in holes]
        more = f" and {len(numbers) - _RANGES_SAID} more" if len(numbers) > _RANGES_SAID else ""
        inside = [g for g in source.gaps if any(h.first <= g.last and h.last >= g.first for h in holes)]
        reasons = "; ".join(dict.fromkeys(g.reason for g in inside if g.verdict == "dropped"))
        _log.warning(
            "source %s of %s misses %d records, numbers %s%s: %s; see otel-audit gaps",
            source.id,
            source.service,
            missing,
            ", ".join(numbers[:_RANGES_SAID]),
            more,
            f"dropped, {reasons}" if reasons else f"they did not come within {self._tracker.late_s:g} s",
            extra={"source": source.id, "service": source.service, "count": missing, "reason": reasons or "late"},
        )


def _about(event: Event) -> dict[str, str]:
    return {"source": event.source, "service": event.service}
