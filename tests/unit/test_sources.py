"""What a log says of its sources, from records made here; and `otel-audit gaps` and `stats`, which print it."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_audit import names
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.cli import run
from otel_audit.numbers import NumberNotes, Seen, read_notes
from otel_audit.otlp import Decoded
from otel_audit.query import Query
from otel_audit.reader import LogReader
from otel_audit.record import span_schema
from otel_audit.sources import GAPS_MAX, Gap, Source, survey
from tests.recordlog import NOON_US, row, rows, snapshot, table

SECOND_US = 1_000_000
LATER_US = NOON_US + 3600 * SECOND_US
WEB = "web-1-77-deadbeef"


def numbered(numbers: Iterable[int], source: str = WEB, **values: Any) -> list[dict[str, Any]]:
    """Records with these numbers, made and taken a second each after noon."""
    return [
        {"source_id": source, "source_seq": n, "time": NOON_US + n * SECOND_US, "recorded_at": NOON_US + n * SECOND_US}
        | values
        for n in numbers
    ]


def loss(seq: int, first: int, last: int, count: int, reason: str = "the spool has reached its size") -> dict[str, Any]:
    said = {names.LOSS_FIRST_SEQ: first, names.LOSS_LAST_SEQ: last, names.LOSS_COUNT: count, names.LOSS_REASON: reason}
    (made,) = numbered([seq], action="otel_audit.loss", attributes=json.dumps(said), client_id=None, outcome="error")
    return made


def begin(seq: int = 1, **values: Any) -> list[dict[str, Any]]:
    return numbered([seq], action="otel_audit.start", client_id=None, client_name=None, **values)


def end(seq: int) -> list[dict[str, Any]]:
    return numbered([seq], action="otel_audit.stop", client_id=None, client_name=None)


def found(folder: Path, values: Sequence[dict[str, Any]], cuts: Sequence[int] = (), **how: Any) -> list[Source]:
    made = rows(values)
    for seq, record in enumerate(made, 1):
        record["seq"] = seq
    with Query(snapshot(folder, made, cuts)) as query:
        return survey(query, read_notes(folder), **{"now_us": LATER_US, **how})


def one(folder: Path, values: Sequence[dict[str, Any]], cuts: Sequence[int] = (), **how: Any) -> Source:
    (source,) = found(folder, values, cuts, **how)
    return source


def missing(source: Source) -> dict[str, set[int]]:
    numbers: dict[str, set[int]] = {}
    for gap in source.gaps:
        numbers.setdefault(gap.verdict, set()).update(range(gap.first, gap.last + 1))
    return numbers


# --- the survey -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(12))
def test_exactly_what_is_missing_is_found_wherever_the_records_lie(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    gone = {s: set(rng.sample(range(1, 300), rng.randrange(60))) for s in ("a-1-x", "b-2-y", "c-3-z")}
    values = [r for s, g in gone.items() for r in numbered(sorted(set(range(1, 301)) - g), s)]
    values += rng.choices(values, k=20)  # taken twice, as after the dedupe window
    values += [{}, {"source_id": "a-1-x"}, {"source_seq": 7}]  # without a number, or a source
    rng.shuffle(values)
    for source in found(tmp_path, values, [100, 350]):
        assert missing(source) == ({"lost": gone[source.id]} if gone[source.id] else {})
        assert source.missing_count == len(gone[source.id])
        assert source.last_seq == 300


def test_a_gap_says_since_when_and_until_when(tmp_path: Path) -> None:
    source = one(tmp_path, [*numbered([3, 4]), *numbered([7, 8])], [3])
    times = [(g.first, g.last, g.before_us, g.after_us) for g in source.gaps]
    second = [NOON_US + n * SECOND_US for n in range(10)]
    assert times == [(1, 2, None, second[3]), (5, 6, second[4], second[7])], "numbers begin at 1"


def test_how_a_source_began_and_ended(tmp_path: Path) -> None:
    clean = one(tmp_path, [*begin(service="crm", instance="blue"), *numbered([2]), *end(3)])
    assert (clean.service, clean.instance, clean.state) == ("crm", "blue", "clean")
    assert (clean.began_us, clean.ended_us, clean.host) == (NOON_US + SECOND_US, NOON_US + 3 * SECOND_US, "web-1")
    assert (clean.missing, clean.gaps, clean.records) == ({}, (), 3)


def test_a_source_without_an_end_is_running_while_it_was_heard_of_lately(tmp_path: Path) -> None:
    values = [*begin(), *numbered([2, 3])]
    assert one(tmp_path, values).state == "no end"
    assert one(tmp_path / "..", values, now_us=NOON_US + 60 * SECOND_US).state == "running"


def test_a_source_that_goes_on_after_its_end_has_not_ended(tmp_path: Path) -> None:
    source = one(tmp_path, [*begin(), *end(2), *numbered([3])])
    assert (source.state, source.ended_us) == ("no end", None)


def test_a_call_that_began_before_the_end_and_is_recorded_behind_it_leaves_the_end_clean(tmp_path: Path) -> None:
    values = [*begin(), *end(2), *numbered([3], time=NOON_US + SECOND_US)]
    assert one(tmp_path, values).state == "clean"


def test_numbers_that_a_loss_record_names_were_dropped_others_were_lost(tmp_path: Path) -> None:
    source = one(tmp_path, [*numbered([1, 2, 5, 6]), loss(9, 3, 8, 4), *numbered([12])])
    assert missing(source) == {"dropped": {3, 4, 7, 8}, "lost": {10, 11}}
    assert source.missing == {"dropped": 4, "lost": 2}
    assert source.gaps[0] == Gap(
        3, 4, "dropped", "the spool has reached its size", NOON_US + 2 * SECOND_US, NOON_US + 5 * SECOND_US
    )


def test_where_more_is_missing_than_was_dropped_it_counts_as_lost(tmp_path: Path) -> None:
    source = one(tmp_path, [*numbered([1]), loss(7, 2, 6, 3)])
    assert source.missing == {"lost": 5}
    assert source.gaps[0].reason.startswith("the source dropped 3 of the numbers 2 to 6: ")


def test_losses_that_overlap_are_taken_together(tmp_path: Path) -> None:
    source = one(tmp_path, [*numbered([1, 4]), loss(8, 2, 6, 3, "x"), loss(9, 3, 7, 2, "y")])
    assert missing(source) == {"dropped": {2, 3, 5, 6, 7}}
    assert source.gaps[0].reason == "x; y"


@pytest.mark.parametrize("said", [(2, 99, 3), (0, 3, 1), (4, 3, 1), (2, 4, 9), (2, 4, 0)])
def test_a_loss_record_that_makes_no_sense_explains_nothing(tmp_path: Path, said: tuple[int, int, int]) -> None:
    assert one(tmp_path, [*numbered([1]), loss(5, *said)]).missing == {"lost": 3}


def test_a_gap_is_late_until_the_log_has_had_a_higher_number_for_so_long(tmp_path: Path) -> None:
    values = [*numbered([1, 3]), *numbered([5], recorded_at=LATER_US - 20 * SECOND_US)]
    source = one(tmp_path, values, late_s=30)
    assert missing(source) == {"lost": {2}, "late": {4}}
    assert one(tmp_path / "..", values, late_s=10).missing == {"lost": 2}


def test_numbers_that_came_without_a_record_are_not_missing(tmp_path: Path) -> None:
    notes = NumberNotes(tmp_path, "audit")
    notes.append([Seen(WEB, ((2, 3), (9, 9)), "copy"), Seen(WEB, ((5, 5),), "unrecorded")], 1)
    notes.append([Seen(WEB, ((3, 3),), "copy"), Seen("other", ((1, 1),), "copy")], 2)
    notes.close()
    source = one(tmp_path, numbered([1, 4, 8]))
    assert missing(source) == {"lost": {6, 7}}
    assert (source.copies, source.unrecorded, source.last_seq) == (3, 1, 9)


def test_unnumbered_records_that_claim_a_source_hide_nothing(tmp_path: Path) -> None:
    values = [*numbered([1, 3]), *numbered([2], source_seq=None)]
    assert one(tmp_path, values).missing == {"lost": 1}


def test_only_some_sources_can_be_asked_for(tmp_path: Path) -> None:
    values = [*numbered([1, 3], "a"), *numbered([1, 3], "b")]
    assert [s.id for s in found(tmp_path, values, ids=["b", "c"])] == ["b"]


def test_of_very_many_gaps_some_are_described_and_all_are_counted(tmp_path: Path) -> None:
    source = one(tmp_path, numbered(range(2, 2 * GAPS_MAX + 100, 2)))
    assert (len(source.gaps), source.missing_count) == (GAPS_MAX, GAPS_MAX + 49)
    assert source.there()[-1] == (2 * GAPS_MAX - 2, 2 * GAPS_MAX - 2), "what lies behind is not known"


def test_an_empty_log_has_no_sources(tmp_path: Path) -> None:
    assert found(tmp_path, []) == []


# --- the log notes what it collapses ----------------------------------------------------------------------------------------
def decoded(values: Sequence[dict[str, Any]]) -> Decoded:
    made = [row(1, **{"trace_id": bytes([n, *bytes(15)]), **v}) for n, v in enumerate(values, 1)]
    (batch,) = table(made).select(span_schema().names).cast(span_schema()).combine_chunks().to_batches()
    return Decoded(batch, (), len(values), 0)


def test_a_number_that_comes_on_a_copy_is_noted_and_that_of_a_retry_is_not(tmp_path: Path) -> None:
    bare = [{"source_id": None, "source_seq": None, "time": r["time"]} for r in numbered([1, 2, 3])]
    settings = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)
    with AuditLog.open(tmp_path, settings) as log:
        log.append(decoded([*bare[:2], *numbered([3])]))
        log.append(decoded(numbered([1, 2, 3])))
        assert list(read_notes(tmp_path)) == [Seen(WEB, ((1, 2),), "copy")]
        log.append(decoded(numbered([1, 2, 3])))
        log.seal()
    with AuditLog.open(tmp_path, settings) as log:
        log.append(decoded(numbered([1, 2, 3])))
        assert log.stats().duplicates == 3
    assert {s.ranges for s in read_notes(tmp_path)} == {((1, 2),)}, "the log's own number is not, after a restart too"
    with Query(LogReader.open(tmp_path).snapshot()) as query:
        (source,) = survey(query, read_notes(tmp_path))
    assert (source.records, source.copies, source.missing) == (1, 2, {})


# --- the commands -----------------------------------------------------------------------------------------------------------
def ran(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    out, err = capfd.readouterr()
    return code, out, err


def made(folder: Path, values: Sequence[dict[str, Any]]) -> str:
    (folder / "journal").mkdir(parents=True)
    snapshot(folder, rows(values), [len(values)])
    return str(folder)


def test_gaps_are_a_row_a_source_and_verdict_in_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = [*begin(service="crm"), *numbered([2, 5]), loss(9, 6, 8, 3), *numbered([1, 2], "web-2-1-aa", service="ok")]
    code, out, err = ran(capfd, "gaps", "--utc", "--late", "0s", "--dir", made(tmp_path / "log", values))
    assert code == 3
    at = [f"2026-11-23T12:00:0{n}.000000+00:00" for n in range(10)]
    assert [line.split("\t") for line in out.splitlines()] == [
        ["Service", "Instance", "Source", "Missing", "Numbers", "Verdict", "Since", "Until", "Reason"],
        ["crm", "", WEB, "2", "3-4", "lost", at[2], at[5], ""],
        ["crm", "", WEB, "3", "6-8", "dropped", at[5], at[9], "the spool has reached its size"],
    ]
    assert err == "5 records missing (2 lost, 3 dropped) of 2 sources; 2 without an end, see --all\n"


def test_gaps_json_is_canonical_and_has_every_source_with_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "log", [*numbered([1, 3]), *numbered([1, 2], "web-2-1-aa", service="ok")])
    code, out, _ = ran(capfd, "gaps", "--json", "--all", "--dir", folder)
    assert code == 3
    lines = out.splitlines()
    assert [json.dumps(json.loads(s), sort_keys=True, separators=(",", ":")) for s in lines] == lines
    first, second = map(json.loads, lines)
    assert (first["source"], first["missing"], first["gaps"][0]["before"]) == (
        WEB,
        {"lost": 1},
        "2026-11-23T12:00:01.000000Z",
    )
    assert (second["source"], second["missing"], second["gaps"]) == ("web-2-1-aa", {}, [])
    assert len(ran(capfd, "gaps", "--json", "--dir", folder)[1].splitlines()) == 1


def test_gaps_before_a_time_can_be_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "log", numbered([1, 3, 5]))
    args = ("gaps", "--utc", "--dir", folder, "--since")
    assert ran(capfd, *args, "2026-11-23T12:00:04")[1].splitlines()[1].split("\t")[4] == "4"
    assert ran(capfd, *args, "2026-11-23T12:00:06")[0] == 0
    assert ran(capfd, *args, "2026-11-23T11:00:00")[1].splitlines()[1].split("\t")[3:5] == ["2", "2, 4"]


def test_gaps_exit_codes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, torn = made(tmp_path / "whole", numbered([1, 2])), made(tmp_path / "torn", numbered([1, 3]))
    late = made(tmp_path / "late", numbered([1, 3], recorded_at=4_000_000_000_000_000))
    bare = made(tmp_path / "bare", [{}])
    codes = {name: ran(capfd, "gaps", "--dir", folder)[0] for name, folder in (
        ("whole", whole), ("torn", torn), ("late", late), ("bare", bare), ("none", str(tmp_path / "no")),
    )}  # fmt: skip
    assert codes == {"whole": 0, "torn": 3, "late": 0, "bare": 0, "none": 5}
    assert ran(capfd, "gaps", "--dir", torn, "--source", "nobody")[0] == 5
    assert ran(capfd, "gaps", "--dir", torn, "--source", WEB)[0] == 3
    assert ran(capfd, "gaps", "--dir", torn, "--late", "soon")[0] == 2


def test_gaps_on_a_terminal_show_hostile_text_harmlessly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "web\x1b[2J-1-aa"
    folder = made(tmp_path / "log", [*numbered([1, 3], evil), loss(9, 4, 8, 5, "\x1b]0;x\x07") | {"source_id": evil}])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = ran(capfd, "gaps", "--all", "--utc", "--dir", folder)
    assert code == 3
    assert "\x1b[2J" not in out
    assert "\x07" not in out
    assert "web\\x1b[2J-1-aa" in out
    assert "no end" in out
    assert "dropped" in out


def test_stats_name_the_sources_and_count_only_calls(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "log", [*begin(), *numbered([2, 4]), *end(5), {"client_id": None, "client_name": None}])
    said = json.loads(ran(capfd, "stats", "--json", "--dir", folder)[1])
    assert (said["records"], said["matching"], said["sources"], said["missing"]) == (5, 3, 1, 1)
    assert {g["value"]: g["count"] for g in said["top"]["client_id"]} == {"acme": 2, None: 1}
    assert [g["value"] for g in said["top"]["action"]] == ["read"]
    own = json.loads(ran(capfd, "stats", "--json", "--action", "otel_audit.start", "--dir", folder)[1])
    assert own["matching"] == 1
    assert len(ran(capfd, "find", "--client", "", "--json", "--dir", folder)[1].splitlines()) == 1
    assert len(ran(capfd, "find", "--json", "--dir", folder)[1].splitlines()) == 5
