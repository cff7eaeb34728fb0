from pathlib import Path

import pytest

from otel_audit import quarantine as quarantine_module
from otel_audit.errors import CorruptLogError
from otel_audit.quarantine import Quarantine, read
from otel_audit.record import Quarantined


def entry(payload: bytes, reason: str = "time_missing") -> Quarantined:
    return Quarantined(reason, "no start\udcff time", payload, "otlp.span+protobuf", service="crm")


def test_entries_come_back_with_reason_and_bytes(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, "audit")
    assert quarantine.append([entry(b"\x00\xff"), entry(b"", "span_undecodable")], 5) == 2
    first, second = read(tmp_path)
    assert (first.number, first.received_us, first.reason, first.payload) == (1, 5, "time_missing", b"\x00\xff")
    assert (second.number, second.service, second.recorded) == (2, "crm", False)


def test_what_is_sent_again_is_kept_once_also_after_a_restart(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, "audit")
    assert quarantine.append([entry(b"a"), entry(b"a")], 1) == 1
    assert quarantine.append([entry(b"a"), entry(b"a", "oversize")], 2) == 1
    quarantine.close()
    again = Quarantine(tmp_path, "audit")
    assert again.append([entry(b"a")], 3) == 0
    assert again.append([entry(b"b")], 3) == 1
    assert [e.number for e in read(tmp_path)] == [1, 2, 3]


def test_files_turn_over_and_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "_FILE_BYTES", 1000)
    quarantine = Quarantine(tmp_path, "audit")
    for i in range(20):
        quarantine.append([entry(bytes([i]) * 300)], i)
    quarantine.close()
    assert len(list((tmp_path / "quarantine").iterdir())) > 3
    assert [e.number for e in read(tmp_path)] == list(range(1, 21))
    assert Quarantine(tmp_path, "audit").count == 20


def test_a_torn_entry_is_cut_off_and_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, "audit")
    quarantine.append([entry(b"a" * 100)], 1)
    quarantine.append([entry(b"b" * 100)], 2)
    quarantine.close()
    (path,) = (tmp_path / "quarantine").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [e.payload[:1] for e in read(tmp_path)] == [b"a"]
    again = Quarantine(tmp_path, "audit")
    again.append([entry(b"c")], 3)
    assert [(e.number, e.payload[:1]) for e in read(tmp_path)] == [(1, b"a"), (2, b"c")]
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(CorruptLogError):
        list(read(tmp_path))
