"""What a sender is told about one request, whichever transport carries it."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Answer", "TurnedAwayError", "Verdict"]


class Verdict(Enum):
    """What a sender is told; each transport has its own words for it."""

    ACCEPTED = "accepted"  # durable
    INVALID = "invalid"  # not OTLP; kept in quarantine, sending it again will not help
    TOO_LARGE = "too_large"  # not kept, sending it again will not help
    RETRY = "retry"  # not durable, send it again
    UNAUTHENTICATED = "unauthenticated"  # not kept, and not as this sender


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request.

    Args:
        verdict: what to tell the sender.
        message: one sentence for whoever reads the sender's log; empty on success.
        retry_after_s: when to send it again; None: as the receiver's settings say.
    """

    verdict: Verdict
    message: str = ""
    retry_after_s: float | None = None


class TurnedAwayError(Exception):
    """A request is answered without being read.

    Args:
        reason: under which it is counted.
        answer: what its sender is told.
        about: what the log says beside, as where it came from.
        sender: the sender, where it is known who it is.
        challenge: what `WWW-Authenticate` says (RFC 9110, section 11.6.1); empty: nothing.
    """

    def __init__(self, reason: str, answer: Answer, *, about: str = "", sender: str = "", challenge: str = "") -> None:
        super().__init__(answer.message)
        self.reason = reason
        self.answer = answer
        self.about = about
        self.sender = sender
        self.challenge = challenge
