"""How values are shown to people: harmless on a terminal, short, with units."""

import re
from typing import Final

__all__ = ["bytes_text", "count_text", "duration_ns", "duration_text", "json_safe", "rate_text", "safe", "share_text"]

# Control and format characters, line separators and lone surrogates (Unicode Cc, Cf, Zl, Zp, Cs): escape sequences,
# direction overrides and invisible characters. A record's text comes from whoever called the API.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ns|us|ms|min|s|m|h|d|w)")
_UNITS_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}


def safe(text: str) -> str:
    r"""`text` with every character that could act on a terminal shown as its escape: `\x1b`, `\u202e`."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_safe(line: str) -> str:
    """A JSON text with such characters as JSON escapes: it means the same, but is no longer canonical byte for byte."""
    return _UNSAFE.sub(_json_escape, line)


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def duration_text(ns: int | None) -> str:
    """A duration with three significant digits, in milliseconds where that reads well."""
    if ns is None:
        return "-"
    ms = ns / 1e6
    if ms < 10_000:
        digits = 3 if ms < 0.1 else 2 if ms < 10 else 1 if ms < 100 else 0
        return f"{ms:,.{digits}f} ms"
    seconds = ns / 1e9
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02} m"


def duration_ns(text: str) -> int | None:
    """Nanoseconds of `500ms`, `1.5s` or `1h30m`; None where the text is no duration."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        return None
    return int(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))


def bytes_text(size: float) -> str:
    """A size in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def count_text(count: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rate_text(count: int, seconds: float) -> str:
    """Calls per time, in the unit that gives a readable number."""
    per_second = count / max(seconds, 1.0)
    units = {"s": per_second, "min": per_second * 60, "h": per_second * 3600}
    unit = next((u for u, rate in units.items() if rate >= 1), "h")
    return f"{units[unit]:,.{0 if units[unit] >= 100 else 1}f}/{unit}"


def share_text(part: int, whole: int) -> str:
    """A percentage; what is there but rounds to nothing is `<0.1 %`, and only all of it is `100 %`."""
    if not whole or not part:
        return "0 %" if whole else "-"
    percent = min(100 * part / whole, 99.9 if part < whole else 100)
    return "<0.1 %" if percent < 0.05 else f"{percent:.0f} %" if part == whole else f"{percent:.1f} %"
