"""Times as people write and read them, always in a stated zone."""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from otel_audit._cli_text import duration_ns
from otel_audit.errors import UsageError

__all__ = ["TIME_FORMS", "Zone", "now_us", "parse_when", "zone_named"]

TIME_FORMS: Final = "15m, 1h30m, 7d, now, today, yesterday, 08:00, 2026-11-23, 2026-11-23T08:00, 2026-11-23T08:00:00Z"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CLOCK: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?\Z")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].+)?\Z", re.IGNORECASE)
_UNIX: Final = re.compile(r"@([0-9]{1,12})(?:\.([0-9]{1,6}))?\Z")


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone with its name; `tz` is None for this machine's own, whose rules the system knows."""

    tz: tzinfo | None
    name: str

    def moment(self, us: int) -> datetime:
        """Microseconds since 1970 UTC as a time here; in UTC where the zone has no such time (year 1 or 9999)."""
        moment = _EPOCH + timedelta(microseconds=us)
        with contextlib.suppress(OverflowError, ValueError, OSError):
            return moment.astimezone(self.tz)
        return moment

    def micros(self, moment: datetime) -> int:
        """Microseconds since 1970 UTC; a time that names no offset is one here."""
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self.tz) if self.tz else moment.astimezone()
        return (moment - _EPOCH) // _MICROSECOND

    def text(self, us: int) -> str:
        """RFC 3339 with the zone's offset, to the microsecond."""
        return self.moment(us).isoformat(timespec="microseconds")

    def day_start(self, us: int, days: int = 0) -> int:
        """The midnight here at which the day of `us` began, or one that many days later."""
        day = self.moment(us).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        return self.micros(day + timedelta(days=days))


def now_us() -> int:
    """The time now, microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def zone_named(name: str | None) -> Zone:
    """The zone of an IANA name such as `Europe/Berlin`, or `UTC`; None for this machine's own.

    Raises:
        UsageError: no such zone.
    """
    if name is None:
        return Zone(None, _local_name())
    if name.upper() in ("UTC", "Z"):
        return Zone(UTC, "UTC")
    try:
        return Zone(ZoneInfo(name), name)
    except (ValueError, OSError, KeyError) as e:
        hint = "give an IANA name such as Europe/Berlin, or UTC; where the system has none: pip install tzdata"
        raise UsageError("use time zone", repr(name), "it is not known here", hint) from e


def _local_name() -> str:
    name = os.environ.get("TZ", "").lstrip(":")
    if not name:
        with contextlib.suppress(OSError):
            target = str(Path("/etc/localtime").resolve(strict=True))
            name = target.partition("zoneinfo/")[2]
    name = {"Etc/UTC": "UTC", "Universal": "UTC", "Zulu": "UTC", "UCT": "UTC"}.get(name, name)
    known = bool(name) and (name == "UTC" or "/" in name)
    return name if known else datetime.now().astimezone().strftime("UTC%z")


def parse_when(text: str, zone: Zone, now: int) -> int:
    """Microseconds since 1970 UTC of a time as people write it.

    Args:
        text: one of `TIME_FORMS`; a duration means that long ago; `@` and seconds since 1970 work as well.
        zone: in which times that name no offset are meant.
        now: microseconds since 1970 UTC.

    Raises:
        UsageError: the text is no time.
    """
    word = text.strip()
    lower = word.lower()
    try:
        if lower == "now":
            return now
        if lower in ("today", "yesterday"):
            return zone.day_start(now, -1 if lower == "yesterday" else 0)
        ago = duration_ns(lower.removesuffix("ago").strip())
        if ago is not None:
            return now - ago // 1000
        unix = _UNIX.match(word)
        if unix:
            return int(unix[1]) * 1_000_000 + int((unix[2] or "0").ljust(6, "0"))
        if _CLOCK.match(word):
            clock = word if word[2] == ":" else "0" + word
            return zone.micros(datetime.fromisoformat(f"{zone.moment(now).date().isoformat()}T{clock}"))
        if _DATE.match(word):
            return zone.micros(datetime.fromisoformat(word))
    except (ValueError, OverflowError) as e:
        raise UsageError("read time", repr(text), str(e), f"write it as one of: {TIME_FORMS}") from e
    raise UsageError("read time", repr(text), "not a time", f"write it as one of: {TIME_FORMS}")
