"""Reading one snapshot: what is found is what a plain walk over the records finds."""

import dataclasses
import ipaddress
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit import record
from otel_audit._query_engine import location
from otel_audit._query_filters import TEXT_FILTERS
from otel_audit._query_scan import Scan
from otel_audit.errors import AuditError, CorruptLogError, NotFoundError, StorageError, UsageError
from otel_audit.query import Cursor, Engine, Filters, Query, QuerySettings, SnapshotExpiredError
from otel_audit.reader import Segment, Snapshot
from tests.recordlog import HOUR_US, NOON_US, row, rows, snapshot, table

Row = dict[str, Any]

ENGINE = Engine()


# --- the plain walk -------------------------------------------------------------------------------------------------------
def in_network(text: str | None, network: str) -> bool:
    if text is None:
        return False
    try:
        ip = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip) in ipaddress.ip_network(network.removeprefix("::ffff:"), strict=False)


def wanted(r: Row, f: Filters) -> bool:
    def has(name: str, column: str) -> bool:
        values = getattr(f, name)
        return not values or (r.get(column) or "") in values

    return (
        (f.since_us is None or r["time"] >= f.since_us)
        and (f.until_us is None or r["time"] < f.until_us)
        and all(has(name, column) for name, column in TEXT_FILTERS.items())
        and (not f.ip or any(in_network(r.get("client_ip"), i) for i in f.ip))
        and (not f.trace or r["trace_id"].hex() in f.trace)
        and (f.min_duration_ns is None or (-1 if r["duration_ns"] is None else r["duration_ns"]) >= f.min_duration_ns)
    )


def newest_first(records: list[Row], f: Filters) -> list[int]:
    found = sorted(((r["time"], r["seq"]) for r in records if wanted(r, f)), reverse=True)
    return [seq for _, seq in found]


def seqs(found: pa.Table | pa.RecordBatch) -> list[int]:
    return list(found.column("seq").to_pylist())


# --- strategies -----------------------------------------------------------------------------------------------------------
NASTY = ["acme", "", "a'b", 'a"b', "a\0b", "%", "_", "' OR 1=1 --", "Ωμέγα", "🦆", "\u202eevil", "a\nb", "null", "A"]
TEXTS = st.sampled_from(NASTY) | st.text(max_size=6)
ADDRESSES = st.sampled_from(
    [
        "192.0.2.7",
        "192.0.2.200",
        "192.0.3.1",
        "10.1.2.3",
        "::ffff:192.0.2.7",
        "2001:db8::1",
        "2001:db8:0:1::1",
        "::1",
        "fe80::1%eth0",
        "unknown",
        "192.0.2",
        "192.0.2.7.8",
        ":::",
        "2001:db8::xyz",
        "",
        "192.0.2.x",
        "192.0.2.300",
        "1:2:3:4:5:6:7::8",
    ]
)
NETWORKS = st.sampled_from(
    [
        "192.0.2.7",
        "192.0.2.0/24",
        "192.0.2.128/25",
        "192.0.0.0/15",
        "0.0.0.0/0",
        "10.0.0.0/8",
        "2001:db8::/32",
        "2001:db8::/63",
        "2001:db8::1",
        "::1",
        "fe80::/10",
        "::ffff:192.0.2.7",
        "2001:db8::/1",
    ]
)
RECORDS = st.fixed_dictionaries(
    {
        "time": st.integers(0, 20).map(lambda n: NOON_US + n),
        "duration_ns": st.none() | st.integers(0, 10**10),
        "client_id": st.none() | TEXTS,
        "service": TEXTS,
        "action": st.sampled_from(["read", "list"]),
        "outcome": st.sampled_from(record.OUTCOMES),
        "user_id": st.none() | TEXTS,
        "client_ip": st.none() | ADDRESSES,
        "trace_id": st.integers(0, 3).map(lambda n: n.to_bytes(16, "big")),
    }
)
FILTERS = st.builds(
    Filters,
    since_us=st.none() | st.integers(0, 10).map(lambda n: NOON_US + n),
    until_us=st.none() | st.integers(11, 21).map(lambda n: NOON_US + n),
    client=st.lists(TEXTS, max_size=3),
    service=st.lists(TEXTS, max_size=2),
    action=st.lists(st.sampled_from(["read", "list", "delete"]), max_size=2),
    outcome=st.lists(st.sampled_from(record.OUTCOMES), max_size=3),
    user=st.lists(TEXTS, max_size=1),
    ip=st.lists(NETWORKS, max_size=2),
    trace=st.lists(st.integers(0, 4).map(lambda n: n.to_bytes(16, "big").hex()), max_size=2),
    min_duration_ns=st.none() | st.integers(0, 10**10),
)
LOGS = st.lists(RECORDS, max_size=40).map(rows)


def cuts_of(records: list[Row], data: st.DataObject) -> list[int]:
    return sorted(data.draw(st.sets(st.integers(1, max(1, len(records))), max_size=4), label="cuts"))


many = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@many
@given(records=LOGS, filters=FILTERS, limit=st.integers(1, 7), data=st.data())
def test_paging_gives_every_match_once_newest_first(
    tmp_path_factory: pytest.TempPathFactory, records: list[Row], filters: Filters, limit: int, data: st.DataObject
) -> None:
    snap = snapshot(tmp_path_factory.mktemp("log"), records, [c for c in cuts_of(records, data) if c <= len(records)])
    found: list[int] = []
    before: Cursor | None = None
    with Query(snap, ENGINE) as query:
        while True:
            page = query.page(filters, limit, before)
            assert page.records.num_rows <= limit
            assert len(found) <= len(records), "a page that does not end"
            found += seqs(page.records)
            if page.next is None:
                break
            assert page.records.num_rows == limit
            before = Cursor.parse(str(page.next))
        assert found == newest_first(records, filters)
        assert query.count(filters) == len(found)


@many
@given(records=LOGS, filters=FILTERS, data=st.data())
def test_a_walk_in_order_gives_every_match_whole(
    tmp_path_factory: pytest.TempPathFactory, records: list[Row], filters: Filters, data: st.DataObject
) -> None:
    snap = snapshot(tmp_path_factory.mktemp("log"), records, [c for c in cuts_of(records, data) if c <= len(records)])
    after = data.draw(st.integers(0, len(records)), label="after")
    told: list[tuple[int, int]] = []
    with Query(snap, ENGINE) as query:
        batches = list(
            query.iter_batches(filters, after_seq=after, progress=lambda done, total: told.append((done, total)))
        )
    expected = [r for r in records if wanted(r, filters) and r["seq"] > after]
    lines = [line for batch in batches for line in record.canonical_lines(batch)]
    assert lines == [record.canonical(r) for r in expected]
    assert all(b.schema.equals(record.schema()) for b in batches)
    assert not told or told[-1][0] == told[-1][1]


@many
@given(records=LOGS, filters=FILTERS, data=st.data())
def test_counts_are_those_of_a_plain_walk(
    tmp_path_factory: pytest.TempPathFactory, records: list[Row], filters: Filters, data: st.DataObject
) -> None:
    snap = snapshot(tmp_path_factory.mktemp("log"), records, [c for c in cuts_of(records, data) if c <= len(records)])
    matching = [r for r in records if wanted(r, filters)]
    with Query(snap, ENGINE) as query:
        buckets = query.histogram(filters, width_us=7, offset_us=NOON_US + 3)
        groups = query.top("client_id", 100, filters)
    assert {b.start_us: b.count for b in buckets} == Counter(
        NOON_US + 3 + (r["time"] - NOON_US - 3) // 7 * 7 for r in matching
    )
    assert sum(b.outcomes["error"] for b in buckets) == sum(r["outcome"] == "error" for r in matching)
    assert {g.value: g.count for g in groups} == Counter(r["client_id"] for r in matching)
    assert [g.count for g in groups] == sorted((g.count for g in groups), reverse=True)
    for group in groups:
        own = [r for r in matching if r["client_id"] == group.value]
        durations = sorted(r["duration_ns"] for r in own if r["duration_ns"] is not None)
        assert group.errors == sum(r["outcome"] in ("denied", "failure", "error") for r in own)
        assert (group.first_us, group.last_us) == (min(r["time"] for r in own), max(r["time"] for r in own))
        assert group.max_ns == (durations[-1] if durations else None)
        for got, q in ((group.p50_ns, 50), (group.p95_ns, 95), (group.p99_ns, 99)):
            exact = durations[-(-q * len(durations) // 100) - 1] if durations else None
            assert got == exact or (got is not None and exact is not None and abs(got - exact) <= 0.006 * exact + 1)


# --- pages ----------------------------------------------------------------------------------------------------------------
def test_equal_times_are_neither_skipped_nor_repeated_between_pages(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{"time": NOON_US}] * 57), [10, 30, 31, 50])
    with Query(snap, ENGINE) as query:
        found, before = [], None
        for _ in range(12):
            page = query.page(limit=5, before=before)
            found += seqs(page.records)
            before = page.next
    assert found == list(range(57, 0, -1))
    assert before is None


def test_a_page_stays_where_it_was_when_newer_records_arrive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = snapshot(tmp_path / "a", rows([{}] * 10), [5])
    later = snapshot(tmp_path / "b", rows([{}] * 30), [5, 20])
    with Query(first, ENGINE) as query, Query(later, ENGINE) as after:
        page = query.page(limit=4)
        assert seqs(after.page(limit=4, before=page.next).records) == [6, 5, 4, 3]


def test_pages_by_arrival_follow_the_numbers_whatever_the_times(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{"time": NOON_US - n} for n in range(20)]), [4, 8, 15])
    with Query(snap, ENGINE) as query:
        page = query.page(limit=6, order="arrival")
        assert seqs(page.records) == [20, 19, 18, 17, 16, 15]
        assert seqs(query.page(limit=20, order="arrival", before=page.next).records) == list(range(14, 0, -1))


def test_a_full_page_leaves_older_segments_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snap = snapshot(tmp_path, rows([{}] * 100), list(range(5, 100, 5)))
    read: list[str] = []

    def note(path: str) -> str:
        read.append(path)
        return location(path)

    monkeypatch.setattr("otel_audit._query_scan.location", note)
    with Query(snap, ENGINE) as query:
        assert seqs(query.page(limit=3).records) == [100, 99, 98]
    assert set(read) == {s.path for s in snap.segments[-2:]}


def test_a_late_record_in_an_old_time_is_found_behind_the_early_stop(tmp_path: Path) -> None:
    times = [NOON_US + n for n in range(40)]
    times[2] = NOON_US + 1000  # the first segment holds the newest record
    snap = snapshot(tmp_path, rows([{"time": t} for t in times]), list(range(4, 40, 4)))
    with Query(snap, ENGINE) as query:
        assert seqs(query.page(limit=3).records) == [3, 40, 39]


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_a_page_has_a_size(tmp_path: Path, limit: int) -> None:
    with Query(snapshot(tmp_path, []), ENGINE) as query, pytest.raises(UsageError, match="limit"):
        query.page(limit=limit)


@pytest.mark.parametrize("text", ["", "1", "1.2.3", "a.b", "1.2; DROP", "9" * 30 + ".1", "1.-2", "\u0661.\u0662"])
def test_a_cursor_that_was_not_given_out_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cursor"):
        Cursor.parse(text)


def test_only_asked_columns_are_read(tmp_path: Path) -> None:
    with Query(snapshot(tmp_path, rows([{}] * 3), [2]), ENGINE) as query:
        page = query.page(columns=("client_id", "trace_id"))
        assert page.records.column_names == ["client_id", "trace_id"]
        assert page.records.schema.field("trace_id").type == pa.binary(16)
        with pytest.raises(UsageError, match="no such column"):
            query.page(columns=("client_id, (SELECT 1)",))


def test_an_empty_log_answers_everything(tmp_path: Path) -> None:
    with Query(snapshot(tmp_path, []), ENGINE) as query:
        assert query.page().records.num_rows == 0
        assert query.page().next is None
        assert query.count() == 0
        assert query.count(Filters(client=("x",))) == 0
        assert query.histogram(width_us=HOUR_US) == []
        assert query.top("service") == []
        assert list(query.iter_batches()) == []
        assert query.values("client_id", "") == []
        assert query.overview().records == 0
        assert query.overview().bytes_per_record is None
        with pytest.raises(NotFoundError):
            query.get("1")
        with pytest.raises(NotFoundError):
            query.get("ab" * 16)


# --- one record -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    trace = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
    span = bytes.fromhex("00f067aa0ba902b7")
    records = rows([{}] * 12)
    records[3] |= {"trace_id": trace, "span_id": span}
    records[10] |= {"trace_id": trace, "time": NOON_US - 1}
    return snapshot(tmp_path_factory.mktemp("traced"), records, [5, 9])


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("identity", "numbers"),
    [
        ("7", [7]),
        ("#12", [12]),
        (" 1 ", [1]),
        (TRACE, [11, 4]),
        (TRACE.upper(), [11, 4]),
        (SPAN, [4]),
        (f"{TRACE}/{SPAN}", [4]),
        (f"{TRACE}:{SPAN}", [4]),
        (f"{TRACE}{SPAN}", [4]),
        (f"00-{TRACE}-{SPAN}-01", [4]),
    ],
)
def test_a_record_is_found_by_each_of_its_names(traced: Snapshot, identity: str, numbers: list[int]) -> None:
    with Query(traced, ENGINE) as query:
        found = query.get(identity)
    assert seqs(found) == numbers
    assert found.schema.equals(record.schema())


@pytest.mark.parametrize("identity", ["13", "0", "999999999999999", "ab" * 16, "ab" * 8, f"{TRACE}/{'ab' * 8}"])
def test_a_record_that_is_not_there_is_not_found(traced: Snapshot, identity: str) -> None:
    with Query(traced, ENGINE) as query, pytest.raises(NotFoundError) as caught:
        query.get(identity)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("identity", ["", "x", "1 OR 1=1", "ab", "/", "-1", "1.5", "ab" * 17, "\u0667"])
def test_what_is_no_id_is_refused(traced: Snapshot, identity: str) -> None:
    with Query(traced, ENGINE) as query, pytest.raises(UsageError, match="not an id"):
        query.get(identity)


# --- filters --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"outcome": ("ok",)}, "success, denied, failure, error, unknown"),
        ({"ip": ("10.0.0.0/33",)}, "192.0.2.0/24"),
        ({"ip": ("localhost",)}, "192.0.2.0/24"),
        ({"ip": ("",)}, "192.0.2.0/24"),
        ({"since_us": 5, "until_us": 5}, "earlier than until"),
        ({"since_us": 2**62}, "between the years"),
        ({"until_us": -(2**63)}, "between the years"),
        ({"trace": ("abc",)}, "32 hex digits"),
        ({"trace": ("g" * 32,)}, "32 hex digits"),
        ({"client": ("\ud800",)}, "no record holds such text"),
        ({"client": "acme"}, "client=[...]"),
        ({"client": (b"acme",)}, "needs text"),
        ({"min_duration_ns": -1}, "0 or more"),
    ],
)
def test_a_filter_that_cannot_be_meant_says_what_to_write(filters: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filters(**filters)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_active_names_the_filters_that_are_set() -> None:
    assert Filters().active == ()
    assert Filters(client=("a",), since_us=0).active == ("since_us", "client")


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE unsealed; --",
    "acme') UNION SELECT * FROM read_csv('/etc/passwd') --",
    "?",
    "$1",
    "acme\0' OR 1=1",
    "%",
    "ac_e",
    "\\",
]


@pytest.mark.parametrize("name", [*TEXT_FILTERS])
@pytest.mark.parametrize("text", INJECTIONS)
def test_a_value_is_never_part_of_the_query(tmp_path: Path, name: str, text: str) -> None:
    if name == "outcome":
        with pytest.raises(UsageError):
            Filters(outcome=(text,))
        return
    records = rows([{}, {TEXT_FILTERS[name]: text}, {}])
    with Query(snapshot(tmp_path, records, [2]), ENGINE) as query:
        filters = dataclasses.replace(Filters(), **{name: (text,)})  # type: ignore[arg-type]
        assert seqs(query.page(filters).records) == [2]
        assert query.count(filters) == 1
        assert [g.value for g in query.top(TEXT_FILTERS[name], 10, filters)] == [text]


@pytest.mark.parametrize("text", ["192.0.2.7' OR '1'='1", "0/0'--", "::/0); SELECT 1"])
def test_an_address_is_checked_before_it_is_compared(text: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        Filters(ip=(text,))


def test_only_columns_of_the_record_can_be_ranked(traced: Snapshot) -> None:
    with Query(traced, ENGINE) as query:
        for column in ("seq", "time", "x; DROP TABLE y", "client_id) --", "1"):
            with pytest.raises(UsageError, match="no such column"):
                query.top(column)
            with pytest.raises(UsageError, match="no such column"):
                query.values(column, "")
        with pytest.raises(UsageError, match="limit"):
            query.top("client_id", 0)


# --- counting -------------------------------------------------------------------------------------------------------------
def test_hours_are_counted_in_utc_and_days_where_their_zone_begins(tmp_path: Path) -> None:
    times = [NOON_US - 13 * HOUR_US, NOON_US - 1, NOON_US, NOON_US + HOUR_US - 1]
    with Query(snapshot(tmp_path, rows([{"time": t} for t in times]), [2]), ENGINE) as query:
        hours = query.histogram(width_us=HOUR_US)
        days = query.histogram(width_us=24 * HOUR_US, offset_us=-2 * HOUR_US)
    assert [(b.start_us, b.count) for b in hours] == [
        (NOON_US - 13 * HOUR_US, 1),
        (NOON_US - HOUR_US, 1),
        (NOON_US, 2),
    ]
    assert [(b.start_us, b.count) for b in days] == [(NOON_US - 14 * HOUR_US, 4)]


def test_times_before_1970_fall_into_the_step_they_are_in(tmp_path: Path) -> None:
    with Query(
        snapshot(tmp_path, rows([{"time": -1}, {"time": 0}, {"time": -10}, {"time": -11}]), [2]), ENGINE
    ) as query:
        assert [(b.start_us, b.count) for b in query.histogram(width_us=10)] == [(-20, 1), (-10, 2), (0, 1)]


def test_a_histogram_of_too_many_steps_is_refused(tmp_path: Path) -> None:
    with Query(snapshot(tmp_path, rows([{"time": n} for n in range(10_001)])), ENGINE) as query:
        with pytest.raises(UsageError, match="longer steps"):
            query.histogram(width_us=1)
        with pytest.raises(UsageError, match="not positive"):
            query.histogram(width_us=0)


def test_a_client_is_labelled_with_its_latest_name(tmp_path: Path) -> None:
    names = ["Old", "New", None]
    records = rows([{"client_name": n} for n in names] + [{"client_id": None, "client_name": None}])
    with Query(snapshot(tmp_path, records, [2]), ENGINE) as query:
        groups = query.top("client_id")
    assert [(g.value, g.label, g.count) for g in groups] == [("acme", "New", 3), (None, None, 1)]


def test_a_latest_name_in_an_older_segment_is_still_the_latest(tmp_path: Path) -> None:
    made = rows([{"time": NOON_US + n, "client_name": "Older"} for n in range(40)])
    made[5] |= {"time": NOON_US + 1000, "client_name": "Latest"}  # arrived early, happened last
    made[39] |= {"time": NOON_US + 2000, "client_id": "other"}
    with Query(snapshot(tmp_path, made, list(range(4, 40, 4))), ENGINE) as query:
        assert {g.value: g.label for g in query.top("client_id")} == {"acme": "Latest", "other": "Older"}


def test_status_codes_are_ranked_as_numbers(tmp_path: Path) -> None:
    with Query(snapshot(tmp_path, rows([{"status_code": c} for c in (200, 404, 200, None)]), [1]), ENGINE) as query:
        groups = query.top("status_code")
    assert [(g.value, g.count, g.p50_ns) for g in groups] == [
        (200, 2, 12345678),
        (404, 1, 12345678),
        (None, 1, 12345678),
    ]


def test_percentiles_are_the_nearest_rank(tmp_path: Path) -> None:
    durations = [*(n * 1_000_000 for n in range(1, 101)), 5, 5_000_000_000]
    clients = [*["many"] * 100, *["two"] * 2]
    made = rows([{"duration_ns": d, "client_id": c} for d, c in zip(durations, clients, strict=True)])
    with Query(snapshot(tmp_path, made, [40]), ENGINE) as query:
        many, two = query.top("client_id")
    for got, exact in ((many.p50_ns, 50e6), (many.p95_ns, 95e6), (many.p99_ns, 99e6)):
        assert got == pytest.approx(exact, rel=0.006)
    assert (two.p50_ns, two.p95_ns, two.p99_ns, two.max_ns) == (5, 5_000_000_000, 5_000_000_000, 5_000_000_000)


def test_the_overview_knows_sizes_and_ends_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snap = snapshot(tmp_path, rows([{}] * 10), [4, 8])
    monkeypatch.setattr(duckdb, "connect", None)
    with Query(snap) as query:
        seen = query.overview()
    assert (seen.log, seen.sealed, seen.unsealed, seen.records, seen.last_seq, seen.segments) == (
        "audit",
        8,
        2,
        10,
        10,
        2,
    )
    assert (seen.time_min_us, seen.time_max_us) == (NOON_US + 1000, NOON_US + 10_000)
    assert seen.bytes_per_record == seen.bytes / 8


def test_values_complete_what_is_begun_most_used_first(tmp_path: Path) -> None:
    clients = ["acme", "apex", "apex", "beta", None, "a%"]
    with Query(snapshot(tmp_path, rows([{"client_id": c} for c in clients]), [3]), ENGINE) as query:
        assert query.values("client_id", "a") == ["apex", "a%", "acme"]
        assert query.values("client_id", "a%") == ["a%"]


# --- the engine is shut in ------------------------------------------------------------------------------------------------
def connected(snap: Snapshot) -> duckdb.DuckDBPyConnection:
    return ENGINE.connect([s.path for s in snap.segments], snap.unsealed)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "COPY (SELECT 1) TO '/tmp/otel-audit-escape.csv'",
        "ATTACH '/tmp/otel-audit-escape.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access=true",
        "SET memory_limit='100GB'",
        "SELECT * FROM read_parquet('https://127.0.0.1/x.parquet')",
        "SELECT * FROM snap",
    ],
)
def test_the_engine_reaches_nothing_but_the_log(traced: Snapshot, sql: str) -> None:
    snap = traced
    with pytest.raises(duckdb.Error):
        connected(snap).execute(sql).fetchall()


def test_folders_with_pattern_characters_and_keys_are_read_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "client_id=other" / "a[1]*?'x"
    folder.mkdir(parents=True)
    with Query(snapshot(folder, rows([{}] * 4), [2, 4])) as query:
        assert query.count(Filters(client=("acme",))) == 4
        assert query.page().records.column_names == [c.name for c in record.COLUMNS]


def test_an_object_store_address_is_left_alone() -> None:
    assert location("s3://bucket/a*b.parquet") == "s3://bucket/a*b.parquet"
    assert location("/x/a*b.parquet") == "/x/a[*]b.parquet"


# --- files that vanish or lie ---------------------------------------------------------------------------------------------
def test_a_vanished_segment_asks_for_a_new_snapshot(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{}] * 4), [2, 4])
    Path(snap.segments[0].path).unlink()
    with Query(snap, ENGINE) as query:
        for ask in (
            query.page,
            lambda: query.count(Filters(client=("x",))),
            lambda: list(query.iter_batches()),
        ):
            with pytest.raises(SnapshotExpiredError) as caught:
                ask()
            assert caught.value.retryable


def test_a_file_that_is_no_parquet_is_named_as_unreadable(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{}] * 4), [4])
    Path(snap.segments[0].path).write_bytes(b"PAR1 nonsense")
    with Query(snap) as query, pytest.raises(StorageError) as caught:
        query.page()
    assert not isinstance(caught.value, SnapshotExpiredError)
    assert "\n" not in str(caught.value)


def test_a_segment_out_of_order_is_never_exported(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{}] * 4), [2, 4])
    first, second = snap.segments
    swapped = Segment(second.path, 2, second.bytes, 1, 2, second.time_min_us, second.time_max_us)
    lying = Snapshot(snap.name, (swapped, first), snap.unsealed, 4, 4)
    with Query(lying, ENGINE) as query, pytest.raises(CorruptLogError, match="order"):
        list(query.iter_batches())


def test_every_error_of_reading_is_one_of_ours(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{}] * 4), [4])
    Path(snap.segments[0].path).write_bytes(b"")
    with Query(snap) as query:
        for ask in (lambda: query.get("1"), lambda: query.top("service"), lambda: query.histogram(width_us=HOUR_US)):
            with pytest.raises(AuditError):
                ask()


def test_one_query_may_walk_and_ask_at_once(tmp_path: Path) -> None:
    with Query(snapshot(tmp_path, rows([{}] * 50), [20, 40]), ENGINE) as query:
        walked = []
        for batch in query.iter_batches():
            walked += seqs(batch)
            assert query.count(Filters(client=("acme",))) == 50
    assert walked == list(range(1, 51))


def test_rows_out_of_the_unsealed_table_keep_their_values(tmp_path: Path) -> None:
    one = row(1, attributes='{"audit.reason":"gdpr"}', client_id="\0'\u202e", user_id="🦆")
    with Query(Snapshot("audit", (), table([one]), 0, 1), ENGINE) as query:
        assert next(record.canonical_lines(query.get("1"))) == record.canonical(one)


# --- memory ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """More text than the smallest engine may hold: 80 MB, as a caller could make it with long paths."""
    records = [row(n, target=f"/{n:08d}" * 1800) for n in range(1, 5001)]
    return snapshot(tmp_path_factory.mktemp("long"), records, [4000])


def test_very_long_texts_are_walked_in_little_memory(long_texts: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    real = Scan.fetch

    def note(self: Scan, numbers: Sequence[int], columns: Sequence[str]) -> pa.Table:
        fetched.append(len(numbers))
        return real(self, numbers, columns)

    monkeypatch.setattr(Scan, "fetch", note)
    with Query(long_texts, Engine(QuerySettings(memory_bytes=1, threads=1))) as query:
        walked = [seq for batch in query.iter_batches() for seq in seqs(batch)]
    assert walked == list(range(1, 5001))
    assert fetched, "the limit was not reached: the test tests nothing"


def test_a_page_of_very_long_texts_is_put_together_from_parts(long_texts: Snapshot) -> None:
    with Query(long_texts, Engine(QuerySettings(memory_bytes=1, threads=1))) as query:
        page = query.page(limit=5000)
    assert seqs(page.records) == list(range(5000, 0, -1))
    assert page.records.column("target")[4].as_py() == "/00004996" * 1800


def test_more_groups_than_memory_holds_are_ranked_all_the_same() -> None:
    base, n = table([row(1)]), 300_000
    columns = {name: pa.repeat(base.column(name)[0], n) for name in base.column_names}
    columns["client_id"] = pa.array([f"{i % (n - 1):06d}" * 40 for i in range(n)])  # 72 MB of text; the first one twice
    columns["seq"] = pa.array(range(1, n + 1), pa.int64())
    snap = Snapshot("audit", (), pa.table(columns, schema=record.schema()), 0, n)
    with Query(snap, Engine(QuerySettings(memory_bytes=1))) as query:
        groups = query.top("client_id", 2)
    assert [(g.value, g.count) for g in groups] == [("000000" * 40, 2), ("000001" * 40, 1)]


# --- networks at their edges ----------------------------------------------------------------------------------------------
EDGED = [
    "10.0.0.0/8",
    "10.32.0.0/11",
    "192.0.2.64/26",
    "192.0.2.6/31",
    "172.16.0.0/12",
    "0.0.0.0/1",
    "255.255.255.0/24",
]
EDGED6 = [
    "2001:db8::/32",
    "2001:db8:0:8000::/49",
    "2001:db8:2::/47",
    "::/3",
    "ff00::/8",
    "2001:db8::1:0/112",
    "::1:0/127",
]


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, list[str]]:
    """Both ends of each network, and what lies just outside."""
    found: dict[str, None] = {}
    for text in [*EDGED, *EDGED6]:
        network = ipaddress.ip_network(text)
        kind, top = type(network.network_address), 2**network.max_prefixlen
        ends = (int(network.network_address), int(network.broadcast_address))
        found.update({str(kind(n)): None for e in ends for n in (e - 1, e, e + 1) if 0 <= n < top})
    addresses = [a for a in found if "." not in a or ":" not in a]
    made = rows([{"client_ip": a} for a in addresses])
    return snapshot(tmp_path_factory.mktemp("edges"), made, [len(made) // 2]), addresses


@pytest.mark.parametrize("network", [*EDGED, *EDGED6])
def test_a_network_holds_its_ends_and_nothing_beyond(edges: tuple[Snapshot, list[str]], network: str) -> None:
    snap, addresses = edges
    with Query(snap, ENGINE) as query:
        found = query.page(Filters(ip=(network,)), 1000, columns=("client_ip",)).records.column("client_ip").to_pylist()
    assert sorted(found) == sorted(a for a in addresses if in_network(a, network))


def test_records_out_of_order_within_a_file_are_never_exported(tmp_path: Path) -> None:
    snap = snapshot(tmp_path, rows([{}] * 4), [4])
    path = snap.segments[0].path
    pq.write_table(pq.read_table(path).take([0, 2, 1, 3]), path)
    with Query(snap) as query, pytest.raises(CorruptLogError, match="order"):
        list(query.iter_batches())
