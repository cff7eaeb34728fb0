"""What the canary makes of what it finds in the log."""

from typing import Any

import pytest

from otel_audit._canary_calls import Call, make_batches
from otel_audit._canary_send import Target, _hint
from otel_audit.canary import Result, compare
from otel_audit.cli import run
from otel_audit.errors import UsageError

SENT_US = 1_790_000_000_000_000


def sent(count: int = 20) -> dict[int, Call]:
    return {call.seq: call for batch in make_batches("canary-1", count) for call in batch.calls}


def arrived(call: Call, **changes: Any) -> dict[str, Any]:
    row = {**call.row, "recorded_at": SENT_US + 5_000 * call.seq}
    return {**row, "time": int(row["time"].timestamp() * 1_000_000 + 0.5), **changes}


def compared(calls: dict[int, Call], rows: list[dict[str, Any]]) -> Result:
    return compare("canary-1", calls, rows, dict.fromkeys(calls, SENT_US))


def test_all_of_it_as_it_was_sent_is_good() -> None:
    calls = sent(60)
    result = compared(calls, [arrived(call) for call in calls.values()])
    assert result.good
    assert (result.sent, result.arrived) == (62, 62)
    assert result.json()["latency_ms"] == {"p50": 160.0, "max": 310.0}


def test_calls_cover_the_ways_in_which_they_are_lost() -> None:
    calls = sent(60)
    assert sorted(calls) == list(range(1, 63))
    assert {c.row["action"] for c in calls.values()} == {"otel_audit.start", "otel_audit.canary", "otel_audit.stop"}
    assert sum(not c.sampled for c in calls.values()) == 20
    assert sum(c.large for c in calls.values()) == 6
    assert {c.row["outcome"] for c in calls.values()} >= {"success", "denied", "failure", "error"}
    assert len({c.row["trace_id"] for c in calls.values()}) == 62


def test_missing_numbers_are_named_with_what_they_have_in_common() -> None:
    calls = sent()
    rows = [arrived(call) for call in calls.values() if call.sampled and not call.large]
    result = compared(calls, rows)
    assert not result.good
    assert result.missing == ((3, 3), (6, 6), (9, 10), (12, 12), (15, 15), (18, 18), (20, 21))
    assert (result.missing_unsampled, result.missing_large) == (7, 2)
    assert result.arrived == 13


def test_a_number_that_is_there_twice_is_named() -> None:
    calls = sent()
    result = compared(calls, [arrived(call) for call in calls.values()] + [arrived(calls[4])])
    assert (result.duplicates, result.good) == ((4,), False)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", 0), ("duration_ns", 1), ("client_id", "x"), ("client_name", None), ("user_id", "x"), ("service", "x"),
        ("action", "read"), ("target", None), ("outcome", "unknown"), ("status_code", 1), ("method", "X"), ("route", None),
        ("client_ip", None), ("client_ip_source", "x"), ("peer_ip", None), ("trace_id", bytes(16)), ("span_id", bytes(8)),
    ],
)  # fmt: skip
def test_a_changed_column_is_named(column: str, value: Any) -> None:
    calls = sent()
    result = compared(calls, [arrived(call, **({column: value} if call.seq == 7 else {})) for call in calls.values()])
    (change,) = result.changes
    assert (change.column, change.records, change.arrived) == (column, 1, value)


def test_added_attributes_are_no_change_and_removed_ones_are() -> None:
    calls = sent()
    rows = [arrived(call, attributes=call.row["attributes"][:-1] + ',"region":"eu"}') for call in calls.values()]
    assert compared(calls, rows).good
    rows = [arrived(call, attributes=None) for call in calls.values()]
    changes = {c.column: c.records for c in compared(calls, rows).changes}
    assert changes["attributes.audit.canary.checksum"] == 22
    assert changes["attributes.audit.canary.padding"] == 2


@pytest.mark.parametrize(
    ("endpoint", "protocol", "url", "http"),
    [
        ("localhost:4317", "", "http://localhost:4317", False),
        ("https://gateway.example.com:4317", "", "https://gateway.example.com:4317", False),
        ("localhost:4318", "", "http://localhost:4318", True),
        ("http://localhost:14318", "http", "http://localhost:14318", True),
        ("http://localhost:80/otlp/v1/traces", "", "http://localhost:80/otlp/v1/traces", True),
        ("[::1]:4317", "", "http://[::1]:4317", False),
    ],
)
def test_an_endpoint_tells_its_protocol(endpoint: str, protocol: str, url: str, http: bool) -> None:
    target = Target(endpoint, protocol)
    assert (target.url, target.over_http) == (url, http)


@pytest.mark.parametrize("endpoint", ["", "localhost", "ftp://x:1", "http://x", "http://x:port", "[::1"])
def test_what_is_no_endpoint_is_a_usage_error(endpoint: str) -> None:
    with pytest.raises(UsageError):
        _ = Target(endpoint).url


def test_a_header_needs_a_value(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--canary", "localhost:4317", "--header", "authorization"]) == 2
    assert "--header name=value" in capfd.readouterr().err


def test_without_a_log_nothing_is_sent(capfd: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert run(["doctor", "--canary", "localhost:1", "--dir", f"{tmp_path}/none"]) == 5


@pytest.mark.parametrize(
    ("said", "protocol", "hint"),
    [
        ("SSL: CERTIFICATE_VERIFY_FAILED", "grpc", "--ca"),
        ("no sender has the bearer token that was shown", "grpc", "--header"),
        ("failed to connect", "grpc", "--protocol http"),
        ("Connection refused", "http", "--protocol grpc"),
    ],
)
def test_what_is_not_taken_in_time_says_what_to_look_at(said: str, protocol: str, hint: str) -> None:
    assert hint in _hint(said, Target("http://localhost:1", protocol))
