import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from otel_audit import record
from otel_audit.errors import RecordError
from otel_audit.record import COLUMNS, INT_MAX, Outcome, canonical, canonical_lines, leaf_hash, outcome_of, parse

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "canonical.json").read_text())

LEAST: dict[str, Any] = {
    "time": 0,
    "service": "s",
    "action": "read",
    "outcome": "success",
    "trace_id": bytes(16),
    "span_id": bytes(8),
    "recorded_at": 1,
    "log": "l",
    "seq": 1,
}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_golden_vectors_hold(vector: dict[str, Any]) -> None:
    line = canonical(vector["record"])
    assert line == vector["canonical"].encode()
    assert leaf_hash(line).hex() == vector["leaf_hash"]
    table = pa.Table.from_pylist([parse(line)], schema=record.schema())
    assert list(canonical_lines(table)) == [line]


def test_there_are_vectors_for_every_column_and_kind() -> None:
    used = {name for v in VECTORS for name in v["record"]}
    assert used == {c.name for c in COLUMNS}


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
value = st.recursive(
    text | st.booleans() | st.integers(-INT_MAX, INT_MAX),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3),
    max_leaves=8,
)
strategies = {
    "string": text,
    "int64": st.integers(-INT_MAX, INT_MAX),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "time": st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
    "bytes16": st.binary(min_size=16, max_size=16),
    "bytes8": st.binary(min_size=8, max_size=8),
    "json": st.dictionaries(text, value, max_size=4),
}
records = st.fixed_dictionaries(
    {c.name: strategies[c.kind] for c in COLUMNS if c.required},
    optional={c.name: strategies[c.kind] for c in COLUMNS if not c.required},
)


@given(records)
def test_the_canonical_line_is_rfc_8785_and_says_all(given_record: dict[str, Any]) -> None:
    line = canonical(given_record)
    assert rfc8785.dumps(json.loads(line)) == line
    again = parse(line)
    assert canonical(again) == line
    attributes = again.pop("attributes", None)
    assert (None if attributes is None else json.loads(attributes)) == given_record.pop("attributes", None)
    assert again == given_record


@given(st.lists(records, min_size=1, max_size=4))
def test_fast_lines_equal_slow_lines(many: list[dict[str, Any]]) -> None:
    lines = [canonical(r) for r in many]
    table = pa.Table.from_pylist([parse(line) for line in lines], schema=record.schema())
    assert list(canonical_lines(table)) == lines


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"service": None}, "every record needs"),
        ({"colour": "red"}, "no such column"),
        ({"seq": INT_MAX + 1}, r"outside"),
        ({"seq": 1.0}, "needs an integer"),
        ({"seq": True}, "needs an integer"),
        ({"service": b"s"}, "needs text"),
        ({"service": "\ud800"}, "lone surrogate"),
        ({"trace_id": bytes(15)}, "needs 16 bytes"),
        ({"trace_id": "xyz"}, "hex"),
        ({"time": 2**62}, "years 1 to 9999"),
        ({"time": "2026-11-23 08:00:00"}, "not of the form"),
        ({"attributes": {"audit.x": 1.5}}, "no canonical form"),
        ({"attributes": {"audit.x": None}}, "no canonical form"),
        ({"attributes": {"audit.x": 2**53}}, "outside"),
        ({"attributes": {1: "x"}}, "not a string"),
    ],
)
def test_what_has_no_canonical_form_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RecordError, match=match):
        canonical(LEAST | changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line + b" ",
        lambda line: line.replace(b'"seq":1', b'"seq": 1'),
        lambda line: line.replace(b'"seq":1', b'"seq":1,"seq":1'),
        lambda line: line.replace(b'"log":"l"', b'"log":"\\u006c"'),
        lambda line: line.replace(b'"log":"l"', b'"log":null'),
        lambda line: b"[" * 100_000,
        lambda line: b"[]",
    ],
)
def test_a_line_that_is_not_canonical_is_refused(change: Any) -> None:
    line = canonical(LEAST)
    assert parse(line)["seq"] == 1
    with pytest.raises(RecordError):
        parse(change(line))


def test_times_may_be_given_as_microseconds_datetime_or_text() -> None:
    moment = datetime(2026, 11, 23, 8, 0, 0, 5, tzinfo=UTC)
    us = int(moment.timestamp()) * 1_000_000 + 5
    lines = {canonical(LEAST | {"time": t}) for t in (us, moment, "2026-11-23T08:00:00.000005Z")}
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("status", "rpc", "span_error", "span_ok", "exception", "expected"),
    [
        (200, False, False, False, False, "success"),
        (302, False, False, False, False, "success"),
        (101, False, False, False, False, "success"),
        (200, False, True, False, False, "error"),
        (401, False, False, False, False, "denied"),
        (403, False, False, False, False, "denied"),
        (429, False, False, False, False, "denied"),
        (404, False, False, False, False, "failure"),
        (422, False, True, False, False, "failure"),
        (500, False, False, False, False, "error"),
        (503, False, True, False, True, "error"),
        (None, False, True, False, False, "error"),
        (None, False, False, False, True, "error"),
        (None, False, False, True, False, "success"),
        (None, False, False, False, False, "unknown"),
        (0, False, False, False, True, "error"),
        (999, False, False, False, False, "unknown"),
        (0, True, False, False, False, "success"),
        (0, True, False, False, True, "error"),
        (0, True, True, False, False, "error"),
        (0, True, False, True, True, "success"),
        (7, True, False, False, False, "denied"),
        (16, True, False, False, False, "denied"),
        (5, True, False, False, False, "failure"),
        (2, True, False, False, False, "error"),
        (13, True, False, False, False, "error"),
        (17, True, False, False, False, "unknown"),
    ],
)
def test_outcome_follows_status_and_exception(
    status: int | None, rpc: bool, span_error: bool, span_ok: bool, exception: bool, expected: Outcome
) -> None:
    assert (
        outcome_of(status_code=status, rpc=rpc, span_error=span_error, span_ok=span_ok, exception=exception) == expected
    )


def test_the_seven_columns_of_the_audit_log_page_are_there_in_its_words() -> None:
    titles = {c.title for c in COLUMNS}
    assert titles >= {
        "API Client ID",
        "API Client Name",
        "Service",
        "Action",
        "Duration",
        "Client IP Address",
        "Execution Time",
    }


def test_the_base_install_can_write_and_check_a_line_without_arrow() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules.update(dict.fromkeys(['pyarrow', 'msgspec', 'numpy']))\n"
        "from otel_audit.record import canonical, parse, leaf_hash\n"
        f"line = canonical({LEAST!r}); assert parse(line)['seq'] == 1; print(leaf_hash(line).hex())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == leaf_hash(canonical(LEAST)).hex()
