"""The command line as a process: pipes, terminals, signals, and a log that is written meanwhile."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from otel_audit import record
from otel_audit.auditlog import AuditLog
from otel_audit.otlp import Decoded
from otel_audit.quarantine import Quarantine
from tests.recordlog import rows, snapshot, table

COMMAND = [sys.executable, "-m", "otel_audit"]
TIMEOUT_S = 60


def environment(**more: str) -> dict[str, str]:
    plain = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OTEL_AUDIT_DIR", "PYTHONUNBUFFERED", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TZ")
    }
    return {**plain, "TERM": "xterm-256color", "TZ": "UTC", **more}


def run(*arguments: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, timeout=TIMEOUT_S, check=False, env=environment(), **more
    )


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    evil = {"client_id": "\x1b]0;owned\x07\x1b[2J", "client_name": "[red]x[/] \u202egpj.exe", "outcome": "error"}
    snapshot(tmp_path, rows([{}, evil, {"client_id": "beta"}, {}]), [4])
    return tmp_path


def decoded(first: int, count: int) -> Decoded:
    """Records as the decoder gives them, told apart by `first`."""
    made = table(rows([{} for _ in range(first + count)])[first:])
    (batch,) = made.select(record.span_schema().names).combine_chunks().to_batches()
    return Decoded(pa.RecordBatch.from_arrays(batch.columns, schema=record.span_schema()), (), count, 0)


# --- pipes ----------------------------------------------------------------------------------------------------------------
def test_exit_codes_reach_the_shell(log: Path) -> None:
    assert run("find", "--dir", str(log)).returncode == 0
    assert run("find", "--dir", str(log), "--client", "nobody").returncode == 0
    assert run("find", "--dir", str(log / "nowhere")).returncode == 5
    assert run("show", "--dir", str(log), "77").returncode == 5
    assert run("find", "--bogus").returncode == 2
    assert run("find", "--dir", str(log), "--ip", "x").returncode == 2


def test_a_folder_that_cannot_be_read_is_a_failure(log: Path) -> None:
    for segment in (log / "lake").glob("*.parquet"):
        segment.write_bytes(b"not parquet")
    done = run("find", "--dir", str(log))
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("command", "code"), [("find", 0), ("export", 1)])
def test_a_reader_that_leaves_early_ends_the_command_quietly(
    tmp_path: Path, command: str, code: int, unbuffered: str
) -> None:
    (tmp_path / "journal").mkdir()
    snapshot(tmp_path, rows([{"user_id": "x" * 200}] * 3000), [3000])
    arguments = ["--limit", "0"] if command == "find" else ["--format", "jsonl"]
    with subprocess.Popen(
        [*COMMAND, command, "--dir", str(tmp_path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED=unbuffered),
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(TIMEOUT_S) == code
    assert err == b""


def test_json_in_a_pipe_is_canonical_byte_for_byte(log: Path) -> None:
    lines = run("find", "--dir", str(log), "--json").stdout.splitlines()
    assert [record.parse(line)["seq"] for line in lines] == [4, 3, 2, 1]
    assert "\u202e".encode() in lines[2]
    assert run("export", "--dir", str(log), "--format", "jsonl").stdout.splitlines() == lines[::-1]


def test_parquet_goes_through_a_pipe(log: Path) -> None:
    import io

    import pyarrow.parquet as pq

    data = run("export", "--dir", str(log), "--format", "parquet").stdout
    assert pq.read_table(io.BytesIO(data)).column("seq").to_pylist() == [1, 2, 3, 4]


def test_names_that_the_locale_cannot_write_do_not_stop_a_list(log: Path) -> None:
    found = subprocess.run(
        [*COMMAND, "find", "--dir", str(log)],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
    )
    assert (found.returncode, found.stderr) == (0, b"")


# --- terminals ------------------------------------------------------------------------------------------------------------
@contextmanager
def on_terminal(*arguments: str, columns: int = 80, **more: str) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more)
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(ours: int, end: Callable[[str], bool]) -> str:
    seen = b""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:
            break  # the other side closed
        if not part:
            break
        seen += part
        if end(seen.decode(errors="replace")):
            break
    return seen.decode(errors="replace")


def shown(*arguments: str, columns: int = 80, **more: str) -> str:
    with on_terminal(*arguments, columns=columns, **more) as (_, ours):
        return read_until(ours, lambda _: False)


SGR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_a_table_that_fits_and_cannot_be_taken_over(log: Path, columns: int) -> None:
    out = shown("find", "--dir", str(log), columns=columns)
    plain = SGR.sub("", out)
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert "\u202e" not in plain
    assert "\\x1b" in plain
    assert max(len(line) for line in plain.split("\r\n")) <= columns
    titles = " ".join(plain.split("\r\n")[1:4])
    for word in ("API", "Client", "ID", "Name", "Service", "Action", "Duration", "IP", "Execution", "Time"):
        assert word in titles
    assert "UTC" in plain


def test_no_color_is_kept(log: Path) -> None:
    assert "\x1b[1;31m" in shown("find", "--dir", str(log))
    assert "31m" not in shown("find", "--dir", str(log), NO_COLOR="1")


def test_json_on_a_terminal_means_the_same_but_is_harmless(log: Path) -> None:
    out = shown("find", "--dir", str(log), "--json", columns=2000)
    lines = [line for line in out.split("\r\n") if line]
    assert "\u202e" not in out
    assert json.loads(lines[2])["client_name"] == "[red]x[/] \u202egpj.exe"


def test_show_on_a_terminal_has_the_hash_to_copy(log: Path) -> None:
    out = SGR.sub("", shown("show", "2", "--dir", str(log)))
    line = next(iter(run("show", "2", "--dir", str(log), "--json").stdout.splitlines()))
    assert record.leaf_hash(line).hex() in out
    assert "API Client Name    [red]x[/] \\u202egpj.exe" in out


def test_stats_on_a_terminal_say_what_the_width_hides(log: Path) -> None:
    narrow = SGR.sub("", shown("stats", "--dir", str(log), columns=80))
    assert "p99 and Max are hidden at this width; --json has them" in narrow
    assert "Max is hidden at this width; --json has it" in SGR.sub("", shown("stats", "--dir", str(log), columns=105))
    wide = SGR.sub("", shown("stats", "--dir", str(log), columns=160))
    assert "hidden" not in wide
    for text in ("4, numbered up to 4; all sealed", "1 segment", "(UTC)", "0 entries", "p95", "Max"):
        assert text in wide


def test_stats_on_a_terminal_align_names_of_clients(log: Path) -> None:
    out = SGR.sub("", shown("stats", "--dir", str(log), columns=160)).split("\r\n")
    (at,) = {line.index("Name") for line in out if line.startswith("API Client")}
    assert {line[at - 2 : at + 4] for line in out if line.startswith(("acme ", "beta "))} == {"  Acme"}


def test_a_quarantine_entry_on_a_terminal_has_a_hexdump(log: Path) -> None:
    kept = Quarantine(log, "audit")
    kept.append([record.Quarantined("span_undecodable", "bad", bytes(range(256)), "otlp.span+protobuf", "crm")], 0)
    kept.close()
    assert "00000040  40 41 42" in shown("quarantine", "--show", "1", "--dir", str(log))


@pytest.mark.parametrize("columns", [80, 160])
def test_a_call_with_a_defect_is_marked_on_a_terminal_only(tmp_path: Path, columns: int) -> None:
    (tmp_path / "journal").mkdir()
    defect = {"attributes": '{"otel_audit.problems":["undecodable:attributes"]}'}
    told = {"attributes": '{"note":"otel_audit.problems"}', "outcome": "denied"}
    snapshot(tmp_path, rows([{}, defect, told]), [3])
    footnote = "! see otel-audit show NUMBER: the call came with a defect"
    for command in (("find",), ("tail", "--no-follow")):
        out = SGR.sub("", shown(*command, "--dir", str(tmp_path), columns=columns))
        assert [line.split()[0] for line in out.split("\r\n") if line.endswith(("ok!", "success!"))] == ["2"]
        assert out.count("!") == 2
        assert footnote in out
        assert "!" not in SGR.sub("", shown(*command, "--dir", str(tmp_path), "--outcome", "denied", columns=columns))
        assert b"!" not in run(*command, "--dir", str(tmp_path)).stdout


def test_an_unverified_client_is_marked_on_a_terminal_only(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    claimed = {"client_id": "web", "client_auth": "basic (unverified)", "outcome": "denied"}
    snapshot(tmp_path, rows([{"client_id": "web", "client_auth": "api_key"}, claimed]), [2])
    footnote = "? behind a client: taken on trust, its credential was not verified"
    for command in (("find",), ("tail", "--no-follow")):
        out = SGR.sub("", shown(*command, "--dir", str(tmp_path), columns=120))
        assert [line.split()[0] for line in out.split("\r\n") if "web ?" in line] == ["2"]
        assert footnote in out
        verified = SGR.sub("", shown(*command, "--dir", str(tmp_path), "--outcome", "success", columns=120))
        assert "?" not in verified
        for form in ((), ("--json",)):
            assert b"?" not in run(*command, "--dir", str(tmp_path), *form).stdout


def test_bytes_are_not_written_to_a_terminal(log: Path) -> None:
    out = shown("export", "--dir", str(log), "--format", "parquet")
    assert "error: export parquet" in out
    assert "PAR1" not in out
    kept = Quarantine(log, "audit")
    kept.append([record.Quarantined("oversize", "too large", b"RAW\x1b[2J", "otlp.span+protobuf")], 0)
    kept.close()
    out = shown("quarantine", "--dir", str(log), "--raw", "1")
    assert "quarantine --raw 1 > payload" in out
    assert "RAW" not in out


def test_progress_is_shown_on_a_terminal_only(log: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "out.csv")
    assert "reading" in shown("export", "--dir", str(log), "--format", "csv", "-o", target)
    assert b"reading" not in run("export", "--dir", str(log), "--format", "csv", "-o", target, "--force").stderr


# --- a log that is being written ------------------------------------------------------------------------------------------
def test_tail_follows_what_arrives_and_ctrl_c_ends_it_well(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with AuditLog.open(folder) as log:
        log.append(decoded(0, 3))
        process = subprocess.Popen(
            [*COMMAND, "tail", "--dir", str(folder), "-n", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(3)]
            assert [line.split(b"\t")[0] for line in lines] == [b"Number", b"2", b"3"]
            log.append(decoded(3, 2))
            assert [process.stdout.readline().split(b"\t")[0] for _ in range(2)] == [b"4", b"5"]
            log.seal()
            log.append(decoded(5, 1))
            assert process.stdout.readline().split(b"\t")[0] == b"6"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, out, err) == (0, b"", b"")


def test_readers_see_unsealed_records_while_a_server_has_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with AuditLog.open(folder) as log:
        log.append(decoded(0, 4))
        log.seal()
        log.append(decoded(4, 3))
        lines = run("find", "--dir", str(folder), "--json").stdout.splitlines()
        assert [record.parse(line)["seq"] for line in lines] == [7, 6, 5, 4, 3, 2, 1]
        found = json.loads(run("stats", "--dir", str(folder), "--json").stdout)
        assert (found["sealed"], found["unsealed"]) == (4, 3)
        refused = run("seal", "--dir", str(folder))
        assert refused.returncode == 1
        assert f"process {os.getpid()}".encode() in refused.stderr
    sealed = run("seal", "--dir", str(folder))
    assert (sealed.returncode, sealed.stdout) == (0, b"")
    assert sealed.stderr in (
        b"sealed 3 records; all up to number 7 are sealed\n",
        b"nothing to seal; all up to number 7 are sealed\n",
    )


# --- serve ----------------------------------------------------------------------------------------------------------------
def test_serve_says_where_it_listens_and_stops_on_a_signal(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    process = subprocess.Popen(
        [*COMMAND, "serve", "--dir", str(folder), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, b"")
        said = next(line for line in lines if line.startswith(b"listening "))
        ports = re.fullmatch(rb"listening grpc=127\.0\.0\.1:(\d+) http=127\.0\.0\.1:(\d+) dir=(.+)\n", said)
        assert ports
        assert ports[3].decode() == str(folder.resolve())
        second = run("serve", "--dir", str(folder), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
        assert second.returncode == 1
        assert f"process {process.pid}".encode() in second.stderr.splitlines()[-1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
