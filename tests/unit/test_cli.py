"""The command line: what it says, how it fails, and that it is documented."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from otel_audit import __version__, record
from otel_audit._cli_panels import print_record
from otel_audit._cli_tables import RecordTable, padded, tsv_header, tsv_lines
from otel_audit._cli_text import bytes_text, duration_ns, duration_text, json_safe, rate_text, safe, share_text
from otel_audit._cli_time import Zone, parse_when, zone_named
from otel_audit.cli import main, run
from otel_audit.errors import UsageError
from otel_audit.quarantine import Quarantine
from tests.recordlog import HOUR_US, NOON_US, row, rows, snapshot

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
UTC_ZONE = Zone(UTC, "UTC")
BERLIN = zone_named("Europe/Berlin")
DAY_US = 24 * HOUR_US


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight sealed records and four unsealed ones of two clients; the current folder's default log."""
    folder = tmp_path / "audit-log"
    (folder / "journal").mkdir(parents=True)
    made = rows(
        [{"client_id": "acme" if n % 3 else "beta", "outcome": "denied" if n == 4 else "success"} for n in range(12)]
    )
    snap = snapshot(folder, made, [8, 12])
    assert snap.last_seq == 12
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OTEL_AUDIT_DIR", raising=False)
    return folder


def ran(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    out, err = capfd.readouterr()
    return code, out, err


# --- documentation --------------------------------------------------------------------------------------------------------
def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", list(main.commands))
def test_every_command_and_flag_is_documented(name: str) -> None:
    found = sections()
    assert f"[`{name}`](#{name})" in DOCS.read_text()
    text = found[name] + (found["Filters"] if "[filters]" in found[name] else "")
    for option in main.commands[name].params:
        if isinstance(option, click.Option):
            for flag in (*option.opts, *option.secondary_opts):
                assert re.search(rf"{re.escape(flag)}\b", text), f"{name} {flag} is not in docs/cli.md"


def test_every_filter_flag_is_a_filter_of_find() -> None:
    flags = set(re.findall(r"^\| `(--[a-z-]+)", sections()["Filters"], flags=re.MULTILINE))
    known = {o for p in main.commands["find"].params for o in p.opts}
    assert flags <= known
    for name in ("tail", "stats", "export"):
        assert flags <= {o for p in main.commands[name].params for o in p.opts}


def test_flags_before_the_command_are_documented() -> None:
    for option in main.params:
        assert all(flag in DOCS.read_text() for flag in option.opts)


def test_help_and_documentation_name_the_same_exit_codes() -> None:
    codes = re.search(r"\*\*Exit codes\.\*\* (.+?)\n", DOCS.read_text())
    assert codes
    documented = re.findall(r"(?:^| · )(\d+) ", codes[1])
    assert main.epilog
    assert re.findall(r"\b\d+\b", main.epilog) == documented == ["0", "1", "2", "3", "5", "130"]


def test_every_flag_says_what_it_does() -> None:
    for command in main.commands.values():
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{command.name} {option.name}"


def test_the_documented_forms_of_time_are_read() -> None:
    forms = re.findall(r"`([^`]+)`", sections()["What holds for all commands"].partition("| form | means |")[2])
    read = [f for f in forms if f not in ("…+01:00", "ms", "s", "m", "h", "d", "w")]
    assert len(read) >= 12
    for form in read:
        parse_when(form, UTC_ZONE, NOON_US)


def test_help_is_quick_because_heavy_packages_stay_out() -> None:
    code = (
        "import sys; from otel_audit.cli import run; assert run(['find', '--help']) == 0; "
        "heavy = {'pyarrow', 'duckdb', 'deltalake', 'numpy', 'rich', 'grpc', 'google.protobuf'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- find -----------------------------------------------------------------------------------------------------------------
def test_find_lists_newest_first_as_tab_separated_text(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, "find", "--limit", "2", "--utc")
    assert code == 0
    header, *lines = out.splitlines()
    assert header.split("\t") == [
        "Number", "API Client ID", "API Client Name", "Service", "Action", "Duration (ms)", "Client IP Address",
        "Execution Time", "Outcome",
    ]  # fmt: skip
    assert [line.split("\t")[0] for line in lines] == ["12", "11"]
    assert lines[0].split("\t")[5:] == ["12.346", "192.0.2.7", "2026-11-23T12:00:00.012000+00:00", "success"]
    cursor = err.strip().rpartition(" ")[2]
    assert ran(capfd, "find", "--limit", "1", "--before", cursor)[1].splitlines()[1].startswith("10\t")


def test_find_json_prints_canonical_lines(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, "find", "--json", "--client", "beta")
    assert code == 0
    assert [record.parse(line.encode())["seq"] for line in out.splitlines()] == [10, 7, 4, 1]
    assert err == ""


def test_find_limit_zero_lists_all_over_many_pages(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit._cli_find._PAGE_ROWS", 5)
    code, out, err = ran(capfd, "find", "--limit", "0")
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == [str(n) for n in range(12, 0, -1)]
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--client", "acne"], "none matches --client; did you mean --client acme?"),
        (["--action", "zap"], "none matches --action; --action is one of read"),
        (["--client", "beta", "--ip", "10.0.0.0/8"], "none matches --ip\n"),
        (["--client", "nobody", "--outcome", "error"], "none matches --client nor --outcome"),
        (["--client", "beta", "--outcome", "denied"], "together they match none"),
        (["--since", "2027-01-01"], "none matches --since"),
        (["--before", "1.1"], "no more records"),
    ],
)
def test_nothing_found_is_an_answer_that_says_why(
    log: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, out, err = ran(capfd, "find", *arguments)
    assert (code, out) == (0, "")
    assert says in err


def test_an_empty_log_says_that_it_is_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal").mkdir()
    snapshot(tmp_path, [])
    assert ran(capfd, "find", "--dir", str(tmp_path)) == (0, "", "no records: the log is empty\n")
    assert ran(capfd, "stats", "--dir", str(tmp_path))[0] == 0
    assert ran(capfd, "tail", "-F", "--dir", str(tmp_path)) == (0, "", "")


def test_times_are_shown_in_the_zone_that_was_asked_for(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ran(capfd, "find", "--limit", "1", "--tz", "Europe/Berlin")[1]
    assert "2026-11-23T13:00:00.012000+01:00" in out
    found = ran(capfd, "find", "--tz", "Europe/Berlin", "--since", "2026-11-23T13:00:00.012")[1].splitlines()
    assert len(found) == 2


# --- errors ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["find", "--dir", "nowhere"], 5, "there is no audit log in this folder"),
        (["tail", "--dir", "nowhere"], 5, "there is no audit log"),
        (["stats", "--dir", "nowhere"], 5, "there is no audit log"),
        (["seal", "--dir", "nowhere"], 5, "there is no audit log"),
        (["quarantine", "--dir", "nowhere"], 5, "there is no audit log"),
        (["export", "--format", "csv", "--dir", "nowhere"], 5, "there is no audit log"),
        (["show", "99"], 5, "numbered 1 to 12"),
        (["show", "ab" * 16], 5, "no record of this trace"),
        (["quarantine", "--show", "1"], 5, "it is empty"),
        (["show", "what"], 2, "not an id"),
        (["show"], 2, "otel-audit show --help"),
        (["fnd"], 2, "Did you mean 'find'"),
        (["find", "--sinse", "1h"], 2, "--since"),
        (["find", "--since", "soon"], 2, "2026-11-23T08:00"),
        (["find", "--since", "1h", "--until", "2h"], 2, "earlier than until"),
        (["find", "--outcome", "ok"], 2, "'success', 'denied', 'failure', 'error', 'unknown'"),
        (["find", "--ip", "300.1.1.1"], 2, "192.0.2.0/24"),
        (["find", "--limit", "-1"], 2, "--limit"),
        (["find", "--before", "x"], 2, "not a cursor"),
        (["find", "--tz", "Mars/Olympus"], 2, "pip install tzdata"),
        (["find", "--tz", "../../etc/passwd"], 2, "not known here"),
        (["find", "--tz", "Europe/Berlin", "--utc"], 2, "give one of"),
        (["find", "--min-duration", "long"], 2, "500ms"),
        (["find", "--client", "\udcff"], 2, "not valid UTF-8"),
        (["export"], 2, "missing option '--format': choose csv, jsonl or parquet; see otel-audit export --help\n"),
        (["completion"], 2, "choose bash, zsh or fish; see otel-audit completion --help\n"),
        (["export", "--format", "ocsf"], 2, "'csv', 'jsonl', 'parquet'"),
        (["quarantine", "--show", "1", "--raw", "1"], 2, "exclude each other"),
        (["tail", "-n", "20000"], 2, "--lines"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    log: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    got, out, err = ran(capfd, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert "\\x" not in err


def test_a_fault_of_the_program_is_one_line_too_and_debug_shows_where(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oops\x1b[2J")

    monkeypatch.setattr("otel_audit._cli_find.filters_from", broken)
    code, _, err = ran(capfd, "find")
    assert code == 1
    assert err == "error: unexpected RuntimeError: oops\\x1b[2J; this is a fault of otel-audit, --debug shows where\n"
    assert "in broken" in ran(capfd, "--debug", "find")[2]


def test_interrupting_says_so_and_is_130(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("otel_audit._cli_find.filters_from", interrupt)
    code, _, err = ran(capfd, "find")
    assert (code, err.strip()) == (130, "interrupted")


def test_version_and_no_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert ran(capfd, "--version") == (0, f"otel-audit, version {__version__}\n", "")
    code, out, _ = ran(capfd)
    assert code == 0
    assert all(name in out for name in main.commands)


def test_dir_comes_from_the_environment(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert ran(capfd, "find")[0] == 5
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(log))
    assert ran(capfd, "find")[0] == 0


# --- show, tail, stats, seal, export, quarantine, completion ---------------------------------------------------------------
def test_show_prints_all_columns_the_line_and_its_hash(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capfd, "show", "5", "--utc")
    fields = dict(line.split("\t", 1) for line in out.splitlines())
    line = record.canonical(row(5, outcome="denied"))
    assert code == 0
    assert fields["canonical"].encode() == line
    assert fields["hash"] == record.leaf_hash(line).hex()
    assert fields["trace_id"] == "0" * 31 + "5"
    assert fields["time"] == "2026-11-23T12:00:00.005000+00:00"
    assert ran(capfd, "show", "5", "--json")[1].encode() == line + b"\n"


def test_show_tells_on_a_terminal_what_a_call_asked_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        "audit.db.calls": 4,
        "audit.db.duration_ns": 12_300_000,
        "audit.http.calls": 1,
        "audit.http.duration_ns": 5_000,
    }
    for attributes, shown in (
        (
            json.dumps(said),
            ["Database     4 calls, 12.3 ms (12,300,000 ns)", "Outgoing     1 call, 0.005 ms (5,000 ns)"],
        ),
        (json.dumps({"audit.db.calls": "4"}), []),
        ("", []),
        (None, []),
    ):
        one = dict.fromkeys(c.name for c in record.COLUMNS) | row(5, attributes=attributes)
        print_record(Console(width=100), one, b"{}", UTC_ZONE)
        words = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
        assert [w for w in words if w.startswith(("Database", "Outgoing"))] == [" ".join(s.split()) for s in shown]


@pytest.mark.parametrize("form", ["00-{}-{}-01", "{}/{}", "{}{}"])
def test_show_falls_back_to_the_trace_of_a_callers_span(
    log: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    code, out, err = ran(capfd, "show", form.format("0" * 31 + "5", "ab" * 8), "--json")
    assert (code, err) == (0, "no record has this span id; showing the one record of its trace\n")
    assert out == ran(capfd, "show", "5", "--json")[1]
    code, out, err = ran(capfd, "show", form.format("cd" * 16, "ab" * 8))
    assert (code, out) == (5, "")
    assert "no record of this trace and span" in err


def test_tail_prints_the_last_in_order_of_arrival(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, "tail", "--no-follow", "-n", "3", "--client", "acme")
    assert (code, err) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == ["9", "11", "12"]


def test_stats_json_has_the_figures(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(ran(capfd, "stats", "--json", "--outcome", "success")[1])
    assert (found["records"], found["sealed"], found["last_seq"], found["segments"]) == (12, 12, 12, 2)
    assert (found["matching"], found["quarantine"], found["time_min"]) == (11, 0, "2026-11-23T12:00:00.001000Z")
    top = found["top"]["client_id"]
    assert [(g["value"], g["count"], g["errors"]) for g in top] == [("acme", 7, 0), ("beta", 4, 0)]
    assert top[0]["p95_ns"] == 12_345_678


def test_stats_in_a_pipe_are_tab_separated_with_every_column(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capfd, "stats", "--utc")
    summary, clients, services, actions, outcomes = out.rstrip("\n").split("\n\n")
    facts = dict(line.split("\t") for line in summary.splitlines())
    assert code == 0
    assert (facts["records"], facts["segments"], facts["time_min"]) == ("12", "2", "2026-11-23T12:00:00.001000+00:00")
    tables = [[line.split("\t") for line in t.splitlines()] for t in (clients, services, actions, outcomes)]
    assert [t[0][0] for t in tables] == ["API Client ID", "Service", "Action", "Outcome"]
    assert all(len(line) == len(t[0]) for t in tables for line in t)
    assert tables[0][1][:5] == ["acme", "Acme CRM Sync", "8", "66.67", "8.000000"]
    assert dict(zip(*tables[0][:2], strict=True))["Max (ms)"] == "12.346"
    assert dict(zip(*tables[0][:2], strict=True))["Errors"] == "1"


def test_stats_in_a_pipe_have_their_headers_when_nothing_matches(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capfd, "stats", "--client", "nobody")
    assert code == 0
    assert "\nmatching\t0\n" in out
    assert len(out.rstrip("\n").split("\n\n")) == 5


def test_seal_says_what_it_did(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, "seal")
    assert (code, out) == (0, "")
    assert err == "nothing to seal; all up to number 12 are sealed\n"
    assert json.loads(ran(capfd, "seal", "--json")[1]) == {"log": "audit", "records": 0, "sealed_seq": 12}


def test_export_writes_a_file_once(log: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = str(tmp_path / "out.jsonl")
    code, out, err = ran(capfd, "export", "--format", "jsonl", "-o", target, "--client", "beta")
    assert (code, out) == (0, "")
    assert err == f"exported 4 records, numbers 1 to 10 to {target}\n"
    assert [record.parse(line)["seq"] for line in Path(target).read_bytes().splitlines()] == [1, 4, 7, 10]
    code, _, err = ran(capfd, "export", "--format", "jsonl", "-o", target)
    assert code == 2
    assert "--force" in err
    assert ran(capfd, "export", "--format", "csv", "-o", target, "--force")[0] == 0
    assert Path(target).read_bytes().startswith(b"time,duration_ns,")
    assert "exported none" in ran(capfd, "export", "--format", "jsonl", "--client", "nobody")[2]


def test_quarantine_lists_shows_and_gives_back_the_bytes(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    kept = Quarantine(log, "audit")
    entries = [
        record.Quarantined("span_undecodable", "bad\x1b[2J", bytes(range(256)) * 3, "otlp.span+protobuf", "crm"),
        record.Quarantined("time_missing", "no start", b"{}", "otlp.span+json", None, recorded=True),
    ]
    kept.append(entries, NOON_US)
    kept.close()
    assert run(["quarantine", "--utc"]) == 0
    lines = [line.split("\t") for line in capfdbinary.readouterr().out.decode().splitlines()]
    assert [line[0] for line in lines] == ["Number", "2", "1"]
    assert lines[2][1:] == ["2026-11-23T12:00:00.000000+00:00", "span_undecodable", "crm", "no", "768", "bad\\x1b[2J"]
    assert run(["quarantine", "--json", "--limit", "1"]) == 0
    found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(e["number"], e["recorded"], e["bytes"]) for e in found] == [(2, True, 2)]
    assert run(["quarantine", "--raw", "1"]) == 0
    assert capfdbinary.readouterr().out == bytes(range(256)) * 3
    assert run(["quarantine", "--show", "1", "--utc"]) == 0
    shown = capfdbinary.readouterr()
    pairs = dict(line.split("\t") for line in shown.out.decode().splitlines())
    assert (pairs["number"], pairs["received"]) == ("1", "2026-11-23T12:00:00.000000+00:00")
    assert (pairs["recorded"], pairs["detail"]) == ("no", "bad\\x1b[2J")
    assert bytes.fromhex(pairs["payload"]) == (bytes(range(256)) * 3)[:512]
    assert b"first 512 of 768 bytes" in shown.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capfd, "completion", shell)
    assert code == 0
    assert "_OTEL_AUDIT_COMPLETE" in out


def test_values_are_completed_from_the_log(log: Path) -> None:
    option = next(p for p in main.commands["find"].params if p.name == "client")
    context = click.Context(main.commands["find"])
    context.params["directory"] = str(log)
    assert [c.value for c in option.shell_complete(context, "a")] == ["acme"]
    context.params["directory"] = "nowhere"
    assert option.shell_complete(context, "a") == []


# --- text -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\r\nb\tc\0", "a\\x0d\\x0ab\\x09c\\x00"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("a\u200bb\ufeff\u2028\U000e0041", "a\\u200bb\\ufeff\\u2028\\U000e0041"),
        ("\udcff", "\\udcff"),
        ("Zoë 名前 🦆 [bold]x[/]", "Zoë 名前 🦆 [bold]x[/]"),
    ],
)
def test_what_could_act_on_a_terminal_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text())
def test_no_text_reaches_the_terminal_with_a_character_that_acts(text: str) -> None:
    import unicodedata

    for shown in (safe(text), json_safe(text)):
        assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_for_a_terminal_means_the_same(text: str) -> None:
    assert json.loads(json_safe(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (None, "-"), (0, "0.000 ms"), (1_234, "0.001 ms"), (870_000, "0.87 ms"), (4_567_890, "4.57 ms"),
        (45_678_900, "45.7 ms"), (456_789_000, "457 ms"), (4_567_890_000, "4,568 ms"), (45_678_900_000, "45.7 s"),
        (456_789_000_000, "7 m 37 s"), (45_678_900_000_000, "12 h 41 m"),
    ],
)  # fmt: skip
def test_durations_read_well(ns: int | None, shown: str) -> None:
    assert duration_text(ns) == shown


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("500ms", 5 * 10**8),
        ("1.5s", 15 * 10**8),
        ("1h30m", 5400 * 10**9),
        ("5min", 300 * 10**9),
        ("2 d", 172_800 * 10**9),
        ("", None),
        ("5", None),
        ("5x", None),
        ("m5", None),
        ("1h later", None),
    ],
)
def test_durations_are_read(text: str, ns: int | None) -> None:
    assert duration_ns(text) == ns


def test_sizes_rates_and_shares_read_well() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 150 * 1024, 3 << 30)] == [
        "0 B",
        "1,023 B",
        "1.0 KiB",
        "150 KiB",
        "3.0 GiB",
    ]
    assert [rate_text(n, 60) for n in (0, 1, 60, 6000, 60_000)] == ["0.0/h", "1.0/min", "1.0/s", "100/s", "1,000/s"]
    assert [share_text(*p) for p in ((0, 0), (0, 5), (1, 10_000), (1, 3), (99_999, 100_000), (7, 7))] == [
        "-", "0 %", "<0.1 %", "33.3 %", "99.9 %", "100 %",
    ]  # fmt: skip


# --- time -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "zone", "us"),
    [
        ("now", UTC_ZONE, NOON_US),
        ("1h", UTC_ZONE, NOON_US - HOUR_US),
        ("1h30m ago", UTC_ZONE, NOON_US - HOUR_US * 3 // 2),
        ("7d", UTC_ZONE, NOON_US - 7 * DAY_US),
        ("today", UTC_ZONE, NOON_US - 12 * HOUR_US),
        ("today", BERLIN, NOON_US - 13 * HOUR_US),
        ("Yesterday", BERLIN, NOON_US - 37 * HOUR_US),
        ("08:00", UTC_ZONE, NOON_US - 4 * HOUR_US),
        ("8:00:30", BERLIN, NOON_US - 5 * HOUR_US + 30_000_000),
        ("2026-11-23", UTC_ZONE, NOON_US - 12 * HOUR_US),
        ("2026-11-23 13:00", BERLIN, NOON_US),
        ("2026-11-23T13:00:00.5", BERLIN, NOON_US + 500_000),
        ("2026-11-23T12:00:00Z", BERLIN, NOON_US),
        ("2026-11-23T17:30:00+05:30", UTC_ZONE, NOON_US),
        ("@1795435200", BERLIN, NOON_US),
        ("@1795435200.25", BERLIN, NOON_US + 250_000),
        ("2026-07-01T12:00", BERLIN, int(datetime(2026, 7, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000),
    ],
)
def test_times_are_read_in_the_stated_zone(text: str, zone: Zone, us: int) -> None:
    assert parse_when(text, zone, NOON_US) == us


@pytest.mark.parametrize(
    "text", ["", "soon", "2026", "2026-13-01", "25:00", "1", "-1h", "2026-11-23T", "@", "20261123"]
)
def test_what_is_no_time_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="yesterday"):
        parse_when(text, UTC_ZONE, NOON_US)


def test_a_day_is_as_long_as_its_zone_makes_it() -> None:
    noon = int(datetime(2026, 10, 26, 11, tzinfo=UTC).timestamp()) * 1_000_000  # the day after summer time ended
    assert parse_when("today", BERLIN, noon) - parse_when("yesterday", BERLIN, noon) == 25 * HOUR_US


def test_the_machines_zone_is_used_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        zone = zone_named(None)
        assert zone.name == "America/New_York"
        assert zone.text(NOON_US) == "2026-11-23T07:00:00.000000-05:00"
        assert parse_when("2026-07-01T08:00", zone, NOON_US) == parse_when("2026-07-01T12:00Z", zone, NOON_US)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("us", [-62_135_596_800_000_000, 253_402_300_799_999_999])
def test_the_first_and_last_times_are_shown_in_any_zone(us: int) -> None:
    assert zone_named("Asia/Tokyo").text(us)
    assert zone_named("America/New_York").text(us)


# --- tables ---------------------------------------------------------------------------------------------------------------
CELLS = st.text(max_size=50) | st.sampled_from(
    ["名前の長い顧客さま株式会社", "🦆🦆", "2001:db8:1234:5678:9abc:def0:1234:5678", ""]
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "client_id": st.none() | CELLS,
                "client_name": CELLS,
                "client_auth": st.sampled_from([None, "api_key", "basic (unverified)"]),
                "service": CELLS,
                "action": CELLS,
                "client_ip": CELLS,
                "duration_ns": st.none() | st.integers(0, 10**15),
                "time": st.integers(NOON_US - 10**15, NOON_US),
                "outcome": st.sampled_from(record.OUTCOMES),
                "seq": st.integers(1, 10**8),
            }
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(84, 220),
    st.booleans(),
)
def test_a_table_of_any_records_fits_the_terminal_in_straight_columns(
    sample: list[dict[str, Any]], width: int, live: bool
) -> None:
    table = RecordTable(width, sample, UTC_ZONE, live=live)
    lines = [*table.header(), *(table.line(r) for r in sample)]
    assert all(cell_len(line.plain) <= width for line in lines)
    assert all("\n" not in line.plain for line in lines)


def test_at_eighty_columns_all_columns_are_there() -> None:
    sample = rows([{"client_ip": "192.0.2.107", "outcome": o} for o in record.OUTCOMES])
    table = RecordTable(80, sample, UTC_ZONE)
    assert table.caption() == "2026-11-23, times in UTC"
    assert all(cell_len(table.line(r).plain) <= 80 for r in sample)
    assert table.line(sample[1]).plain.split()[-2:] == ["12:00:00", "deny"]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("live", [False, True])
def test_a_client_that_nobody_verified_is_marked_however_its_id_is_cut(width: int, live: bool) -> None:
    auths = ["api_key", "basic (unverified)", "basic (unverified)", "other (unverified)"]
    ids = ["web", "web", "w" * 99, None]
    sample = rows([{"client_id": c, "client_auth": a} for c, a in zip(ids, auths, strict=True)])
    table = RecordTable(width, sample, UTC_ZONE, live=live)
    lines = [table.line(r).plain for r in sample]
    assert [line.count(" ?") for line in lines] == [0, 1, 1, 0]
    assert lines[1].split()[1:3] == ["web", "?"]
    assert all(cell_len(line) <= width for line in lines)
    assert "?" not in "".join(tsv_lines(sample, UTC_ZONE))


@pytest.mark.parametrize("width", [90, 100, 120])
def test_names_are_cut_before_an_address_is(width: int) -> None:
    address = "2001:db8:51:1234::abcd"
    sample = rows([{"client_id": "quickleads-03", "client_name": "QuickLeads plug-in", "client_ip": address}] * 3)
    line = RecordTable(width, sample, UTC_ZONE).line(sample[0]).plain
    assert address in line
    assert cell_len(line) <= width


def test_cells_are_cut_to_their_width_whatever_they_hold() -> None:
    assert padded("abcdef", 4, right=False) == "abc…"
    assert padded("ab", 4, right=True) == "  ab"
    assert cell_len(padded("名前の長い", 6, right=False)) == 6


def test_tab_separated_lines_have_as_many_fields_as_the_header() -> None:
    evil = row(1, client_id="a\tb\nc", service="x\r\ny")
    (line,) = tsv_lines([evil], UTC_ZONE)
    assert len(line.split("\t")) == len(tsv_header().split("\t"))
    assert line.splitlines() == [line]
