"""What the service writes to standard error: lines for people, or JSON objects for machines."""

import json
import logging
import math
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from otel_audit._telemetry_settings import LogsSettings

__all__ = ["JsonFormatter", "log_to"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_RESERVED: Final = frozenset({"ts", "level", "logger", "msg"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: `ts`, `level`, `logger`, `msg`, the fields of the message, and those of an exception.

    `ts` is RFC 3339 in UTC with microseconds. It never fails, and what it gives is always one line of valid JSON: text
    that is not Unicode is escaped, numbers that JSON does not have are text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": _level_name(record.levelno),
            "logger": _text(record.name),
            "msg": _message(record),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[f"field.{key}" if key in _RESERVED else _clean(key)] = _value(value)
        if record.exc_info and record.exc_info[1] is not None:
            line.update(_exception(record.exc_info[1]))
        return json.dumps(line, allow_nan=False)


def _level_name(number: int) -> str:
    return next((name for name, least in reversed(_LEVELS.items()) if number >= least), "debug")


def _message(record: logging.LogRecord) -> str:
    try:
        return _clean(record.getMessage())
    except Exception:  # the arguments do not fit, or cannot be written
        return _clean(record.msg if isinstance(record.msg, str) else type(record.msg).__name__)


def _exception(error: BaseException) -> dict[str, str]:
    """As OpenTelemetry's semantic conventions name it."""
    return {
        "exception.type": _clean(type(error).__qualname__),
        "exception.message": _text(error),
        "exception.stacktrace": _clean("".join(traceback.format_exception(error))),
    }


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(value)


def _text(value: object) -> str:
    try:
        return _clean(str(value))
    except Exception:
        return f"({type(value).__name__} that cannot be written)"


def _clean(text: str) -> str:
    """`text` without lone surrogates, which JSON readers refuse."""
    return text.encode(errors="backslashreplace").decode()


def log_to(stream: TextIO, settings: LogsSettings) -> None:
    """Write the log of this process to a stream.

    Args:
        stream: standard error, for the service.
        settings: from which level on, and how. Other libraries are heard from `warn` on, or from `level` if that is higher.
    """
    handler = logging.StreamHandler(stream)
    if settings.encoding == "json":
        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(capture=True)
        threading.excepthook = _thread_failed
    else:
        form = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime
        handler.setFormatter(form)
    level = _LEVELS[settings.level]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(max(level, logging.WARNING))
    logging.getLogger("otel_audit").setLevel(level)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """An object as any other, in place of the text that Python would write."""
    name = args.thread.name if args.thread else "unknown"
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        about = {"failed_thread": name}
        logging.getLogger("otel_audit").error("thread %s failed", name, exc_info=args.exc_value, extra=about)
