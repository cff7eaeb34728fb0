"""The gate of the receiver: who may send is decided before a body is read, what he may say once it is decoded.

Both transports, and every signal, pass it: `Gate.enter` with what a request shows, then `Visit.check` with what it held.
Without senders in the settings it is open, and costs nothing.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from otel_audit._receiver_answer import Answer, TurnedAwayError, Verdict
from otel_audit._receiver_reload import Watched
from otel_audit._senders_file import load_senders
from otel_audit.errors import ConfigError
from otel_audit.otlp import Decoded
from otel_audit.record import Quarantined
from otel_audit.senders import Allowance, Bucket, Directory, Sender, digest_of

__all__ = ["NOT_ALLOWED", "AccessSettings", "Credentials", "Gate", "Visit", "never_known"]

NOT_ALLOWED: Final = "sender_not_allowed"
_RETRY_S: Final = 10.0  # whoever is not known costs little, and is let in soon after he is
_MESSAGE_CHARS: Final = 400  # gRPC carries it in a header
_COPY_COSTS: Final = 0.1  # of what a new record costs a sender of its rate
_BEARER: Final = "bearer "
_CHALLENGE: Final = 'Bearer realm="otel-audit"'


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may send.

    Args:
        senders: those that may; None: whoever reaches the receiver, unless `senders_file` says otherwise.
        senders_file: a file with their list instead, read again when it changes.
        unauthenticated: what is answered to anybody else. `retry`: come again, so that an authentic sender whose token is
            not known yet, or no more, loses nothing; `refuse`: never, after which senders drop what they have.
        allow_insecure: whether to listen for other machines without encryption or without knowing who sends.
        reload_interval_s: how often to look whether the file has changed.
    """

    senders: tuple[Sender, ...] | None = None
    senders_file: str | None = None
    unauthenticated: Literal["retry", "refuse"] = "retry"
    allow_insecure: bool = False
    reload_interval_s: float = 5.0

    @property
    def known(self) -> bool:
        """Whether senders must say who they are."""
        return self.senders is not None or self.senders_file is not None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request shows of its sender.

    Args:
        authorization: its header of this name; empty: none.
        names: of its client certificate, which the handshake has verified.
        certified: whether there is one.
        address: where it comes from, for the log.
    """

    authorization: str = ""
    names: tuple[str, ...] = ()
    certified: bool = False
    address: str = ""

    def __repr__(self) -> str:
        return f"Credentials(names={self.names}, address={self.address!r})"

    @property
    def token(self) -> str | None:
        """The bearer token (RFC 6750, section 2.1); None: there is none."""
        scheme, given = self.authorization[: len(_BEARER)], self.authorization[len(_BEARER) :].strip()
        return given if scheme.lower() == _BEARER and given else None


class Visit:
    """One request that was let in.

    Args:
        sender: who sends it; None: nobody asks.
        allowance: for whom it may speak.
        bucket: its rate; None: no limit.
    """

    def __init__(
        self, sender: Sender | None = None, allowance: Allowance | None = None, bucket: Bucket | None = None
    ) -> None:
        self.sender = sender
        self._allowance = allowance
        self._bucket = bucket
        self._charged: float = 0
        self.not_allowed = 0
        """Records of this request that are kept in quarantine because they are not the sender's; known after `check`."""

    @property
    def name(self) -> str:
        """The sender's name; empty where nobody asks."""
        return self.sender.name if self.sender else ""

    def limit_bytes(self, most: int) -> int:
        """The largest body, where the receiver's own limit is `most`."""
        own = self.sender.max_request_bytes if self.sender else None
        return most if own is None else min(own, most)

    def check(self, decoded: Decoded, whole: Callable[[], Quarantined]) -> Decoded:
        """What is to be stored of a request.

        What a sender may not say is kept, not recorded: it must neither pass for another's word nor be lost.

        Args:
            decoded: the request.
            whole: gives all of it as one entry, for a decoder that cannot give the bytes of one record.
        """
        if self._bucket is not None:
            self._charged = max(1, decoded.records.num_rows + len(decoded.quarantine))
            self._bucket.take(self._charged)
        if self._allowance is None:
            return decoded
        records = decoded.records
        refused = self._allowance.refused(records.column("service"), records.column("source_id"))
        numbers = decoded.unrecorded if refused is None else _with_numbers(decoded.unrecorded, records.filter(refused))
        unrecorded = self._own_numbers(numbers)
        if refused is None:
            return decoded if unrecorded is decoded.unrecorded else replace(decoded, unrecorded=unrecorded)
        rows = pc.indices_nonzero(refused).to_pylist()
        kept = self._quarantined(decoded, rows, whole)
        payloads = {entry.payload for entry in kept}
        before = [q for q in decoded.quarantine if not (q.recorded and q.payload in payloads)]
        self.not_allowed = len(rows)
        return replace(
            decoded,
            records=records.filter(pc.invert(refused)),
            quarantine=(*before, *kept),
            unrecorded=unrecorded,
        )

    def give_back(self) -> None:
        """The request is not durable, and does not count for the rate."""
        if self._bucket is not None and self._charged:
            self._bucket.take(-self._charged)
            self._charged = 0

    def give_back_copies(self, copies: int) -> None:
        """The request is durable, and so many of its records and entries were so before: they count for little.

        Senders send again what was not acknowledged in time; charged in full, a disk that stalls would shut them out
        afterwards. They still count for something, because copies have to be decoded as well.
        """
        if self._bucket is not None and copies:
            back = min(copies * (1 - _COPY_COSTS), self._charged - 1)
            self._bucket.take(-back)
            self._charged -= back

    def _own_numbers(self, unrecorded: pa.RecordBatch | None) -> pa.RecordBatch | None:
        """Numbers of other sources would hide their gaps."""
        if unrecorded is None or self._allowance is None:
            return unrecorded
        refused = self._allowance.refused(None, unrecorded.column("source_id"))
        return unrecorded if refused is None else unrecorded.filter(pc.invert(refused))

    def _quarantined(self, decoded: Decoded, rows: list[int], whole: Callable[[], Quarantined]) -> list[Quarantined]:
        said = decoded.records.select(["service", "source_id"]).take(pa.array(rows)).to_pylist()
        if decoded.raw is None:
            detail = f"{self._told(said[0])}, nor for {len(rows) - 1} other records of this request"
            return [replace(whole(), detail=detail, service=said[0]["service"])]
        entries = []
        for row, about in zip(rows, said, strict=True):
            kind, payload = decoded.raw(row)
            entries.append(Quarantined(NOT_ALLOWED, self._told(about), payload, kind, about["service"]))
        return entries

    def _told(self, about: dict[str, Any]) -> str:
        source = f" as source {about['source_id']!r}" if about["source_id"] is not None else ""
        return f"the sender {self.name} may not speak for service {about['service']!r}{source}"


def _with_numbers(unrecorded: pa.RecordBatch | None, kept: pa.RecordBatch) -> pa.RecordBatch | None:
    """The numbers of records that are kept in quarantine beside the others: they are not lost."""
    numbers = kept.select(["source_id", "source_seq"])
    if numbers.column("source_seq").null_count == numbers.num_rows:
        return unrecorded
    return numbers if unrecorded is None else pa.concat_batches([unrecorded, numbers])


def never_known(senders: Iterable[Sender]) -> ConfigError | None:
    """What is wrong with these senders where no protocol asks for certificates."""
    if not any(sender.certificate for sender in senders):
        return None
    reason = "a sender is known by its certificate, but no protocol asks for one"
    return ConfigError("read senders", "receivers.otlp", reason, "set tls.client_ca_file of grpc or http")


_ANYBODY: Final = Visit()


class Gate:
    """Lets requests in. Thread-safe.

    Args:
        settings: who may send.
        clock: monotonic seconds; tests replace it.
        certificates: whether any protocol asks for client certificates.

    Raises:
        ConfigError: the senders cannot be read, or one could never be known.
    """

    def __init__(
        self,
        settings: AccessSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        certificates: bool = True,
    ) -> None:
        self._certificates = certificates
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()  # guards the buckets; the other fields are replaced as wholes
        # By name, rate and burst: a debt outlives a change of other settings.
        self._buckets: dict[tuple[str, int | None, int], Bucket] = {}
        self._visits: dict[str, tuple[Sender, Allowance | None]] = {}
        self.watched: Watched[Directory] | None = None
        """The file of senders, if there is one; whoever polls it keeps the gate up to date."""
        self._fixed: Directory | None = None
        if settings.senders is not None and settings.senders_file is not None:
            hint = "give one of them"
            raise ConfigError("read senders", "receivers.otlp.senders", "there is senders_file as well", hint)
        if settings.senders is not None:
            self._fixed = self._usable(settings.senders)
        elif settings.senders_file is not None:
            path = settings.senders_file
            self.watched = Watched(
                f"the senders of {path}", [path], lambda: self._usable(load_senders(path)), settings.reload_interval_s
            )

    def _usable(self, senders: Sequence[Sender]) -> Directory:
        directory = Directory(senders)
        error = None if self._certificates else never_known(senders)
        if error is not None:
            raise error
        return directory

    @property
    def directory(self) -> Directory | None:
        """All senders; None: nobody asks."""
        return self.watched.current if self.watched is not None else self._fixed

    def enter(self, shown: Callable[[], Credentials], *, certificate_wanted: bool = False) -> Visit:
        """Let a request in; its body is not read yet.

        Args:
            shown: gives what it shows; not asked for where nobody wants to know.
            certificate_wanted: whether it must have a client certificate, whoever sends it.

        Raises:
            TurnedAwayError: it is not known who sends it, or he has sent too much.
        """
        directory = self.directory
        if directory is None and not certificate_wanted:
            return _ANYBODY
        credentials = shown()
        if certificate_wanted and not credentials.certified:
            raise self._stranger("certificate_missing", "a client certificate is needed", credentials)
        if directory is None:
            return _ANYBODY
        digest = digest_of(credentials.token) if credentials.token is not None else None
        sender = directory.find(digest, credentials.names)
        if sender is None:
            raise self._unknown(directory.of_token(digest) if digest else None, digest, credentials)
        allowance, bucket = self._of(sender)
        wait_s = bucket.wait_s() if bucket is not None else 0.0
        if wait_s > 0:
            told = f"the sender {sender.name} has sent over {sender.rate_records_per_s} records/s; come again"
            raise TurnedAwayError("rate_limited", Answer(Verdict.RETRY, told, wait_s), sender=sender.name)
        return Visit(sender, allowance, bucket)

    def _of(self, sender: Sender) -> tuple[Allowance | None, Bucket | None]:
        with self._lock:
            before = self._visits.get(sender.name)
            if before is None or before[0] is not sender:
                allowance = Allowance(sender) if sender.services or sender.sources else None
                self._visits[sender.name] = before = (sender, allowance)
                self._forget()
            bucket = None
            if sender.rate_records_per_s is not None:
                key = (sender.name, sender.rate_records_per_s, sender.burst)
                bucket = self._buckets.get(key)
                if bucket is None:
                    bucket = self._buckets[key] = Bucket(sender.rate_records_per_s, sender.burst, self._clock)
        return before[1], bucket

    def _forget(self) -> None:
        """Drop what is kept of senders that are no more."""
        directory = self.directory
        here = {s.name: (s.name, s.rate_records_per_s, s.burst) for s in directory.senders} if directory else {}
        self._visits = {name: kept for name, kept in self._visits.items() if name in here}
        self._buckets = {key: kept for key, kept in self._buckets.items() if here.get(key[0]) == key}

    # --- strangers
    def _unknown(self, sender: Sender | None, digest: str | None, credentials: Credentials) -> TurnedAwayError:
        """Why nobody is known who shows this; the token may be that of a sender who must show more."""
        names = ", ".join(credentials.names) or "no name"
        if sender is not None:
            reason = "certificate_unknown" if credentials.certified else "certificate_missing"
            shows = f"that of {names} is not its own" if credentials.certified else "there is none"
            told = f"the sender {sender.name} must show its certificate beside its token, and {shows}"
            return self._stranger(reason, told, credentials)
        if digest is not None:
            told = f"no sender has the bearer token whose SHA-256 begins with {digest[:8]}"
            return self._stranger("token_unknown", told, credentials, 'error="invalid_token"')
        if credentials.certified:
            told = f"no sender is known by a certificate of {names} alone"
            return self._stranger("certificate_unknown", told, credentials)
        return self._stranger("credentials_missing", "a bearer token or a client certificate is needed", credentials)

    def _stranger(self, reason: str, told: str, credentials: Credentials, error: str = "") -> TurnedAwayError:
        retry = self._settings.unauthenticated == "retry"
        verdict = Verdict.RETRY if retry else Verdict.UNAUTHENTICATED
        message = f"unauthenticated: {told[:_MESSAGE_CHARS]}" + ("; come again once it is known" if retry else "")
        challenge = f"{_CHALLENGE}, {error}" if error else _CHALLENGE
        about = f"from {credentials.address}" if credentials.address else ""
        return TurnedAwayError(reason, Answer(verdict, message, _RETRY_S), about=about, challenge=challenge)
