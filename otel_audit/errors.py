"""One exception tree: what was attempted, on what, and what to do about it.

Every error of this package is an `AuditError`. `retryable` tells the caller whether the same call may succeed later
without anyone changing anything; the receiver maps it to UNAVAILABLE / 503, everything else to a final answer.
"""

from typing import ClassVar

__all__ = [
    "AuditError",
    "CaptureError",
    "ConfigError",
    "CorruptLogError",
    "DecodeError",
    "LockedError",
    "LogClosedError",
    "NotFoundError",
    "OverloadedError",
    "RecordError",
    "StorageError",
    "TooLargeError",
    "UnavailableError",
    "UsageError",
]


class AuditError(Exception):
    """Base of all errors; its text reads "operation subject: reason; hint".

    Args:
        operation: what was attempted, as a verb phrase ("open log").
        subject: what it was attempted on: a path, an address, an id.
        reason: what went wrong.
        hint: what the reader can do about it; may be empty.
    """

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, operation: str, subject: object, reason: str, hint: str = "") -> None:
        self.operation = operation
        self.subject = str(subject)
        self.reason = reason
        self.hint = hint
        text = f"{operation} {self.subject}: {reason}"
        super().__init__(f"{text}; {hint}" if hint else text)


class UsageError(AuditError):
    """The caller asked for something that cannot be meant: a bad filter, an unknown format."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A setting, environment variable or configuration file is wrong."""


class CaptureError(AuditError):
    """Capture could not be installed or could not ship; never raised into the application."""


class RecordError(AuditError):
    """A value does not fit the audit record."""


class DecodeError(AuditError):
    """Bytes are not the OTLP message they claim to be; sending them again will not help."""


class TooLargeError(DecodeError):
    """A message is over its size limit, as sent or after decompression."""


class NotFoundError(AuditError):
    """No such log, record or segment."""

    exit_code: ClassVar[int] = 5


class StorageError(AuditError):
    """The log's files cannot be used."""


class LockedError(StorageError):
    """Another process has the log open for writing."""


class LogClosedError(StorageError):
    """The log was closed; a server shutting down answers this as retryable."""

    retryable: ClassVar[bool] = True


class CorruptLogError(StorageError):
    """A file of the log does not hold what was written.

    Args:
        path: the file.
        offset: the byte where what can be trusted ends.
        reason: what does not match there.
        hint: what the reader can do about it.
    """

    def __init__(self, path: object, offset: int, reason: str, hint: str = "") -> None:
        super().__init__("read", f"{path} at byte {offset}", reason, hint)
        self.path = str(path)
        self.offset = offset


class UnavailableError(StorageError):
    """Data could not be made durable now (disk full, I/O error); nothing of it was kept, send it again."""

    retryable: ClassVar[bool] = True


class OverloadedError(UnavailableError):
    """The bounded queue in front of the journal is full; nothing of the request was kept, send it again."""
