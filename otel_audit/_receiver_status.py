"""The google.rpc.Status of an answer, which both transports carry.

Source: OTLP specification 1.10, "Failures", "Bad Data" and "OTLP/gRPC Throttling".
"""

from typing import Any, Final

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from otel_audit._receiver_answer import Answer, Verdict

__all__ = ["retry_info", "status_of"]

_CODES: Final = {
    Verdict.INVALID: code_pb2.INVALID_ARGUMENT,
    Verdict.TOO_LARGE: code_pb2.RESOURCE_EXHAUSTED,
    Verdict.RETRY: code_pb2.UNAVAILABLE,
    Verdict.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
}


def status_of(answer: Answer, retry_after_s: float) -> Any:
    """The status of an answer other than success: with RetryInfo if it is to be retried, BadRequest if it is bad data.

    Args:
        answer: the answer.
        retry_after_s: when to try again, unless the answer says so itself.
    """
    status = status_pb2.Status(code=_CODES[answer.verdict], message=answer.message)
    detail = any_pb2.Any()
    if answer.verdict is Verdict.RETRY:
        detail.Pack(retry_info(answer.retry_after_s or retry_after_s))
        status.details.append(detail)
    elif answer.verdict is Verdict.INVALID:
        violation = error_details_pb2.BadRequest.FieldViolation(field="resource_spans", description=answer.message)
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    return status


def retry_info(retry_after_s: float) -> Any:
    """A google.rpc.RetryInfo."""
    seconds, rest = divmod(retry_after_s, 1)
    delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(rest * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)
