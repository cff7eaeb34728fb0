"""The client directory: both formats, hashed keys, reload, and no file that breaks it."""

import hashlib
import json
import logging
import threading
import time
from pathlib import Path

import pytest

from otel_audit.capture.clients import Client, ClientDirectory


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


CLIENTS = [
    {"id": "web", "name": "Web front end", "key": "web-key"},
    {"id": "sync", "name": "Nightly sync", "key_sha256": sha256("sync-key"), "owner": "it"},
    {"id": "bi", "keys": ["bi-1", "bi-2"]},
    {"id": "ops", "name": "Operations"},
]


@pytest.mark.parametrize("wrapped", [False, True])
def test_json_names_clients_by_key_and_by_id(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "clients.json"
    path.write_text(json.dumps({"clients": CLIENTS} if wrapped else CLIENTS))
    directory = ClientDirectory(str(path))
    assert directory.by_key(b"web-key") == Client("web", "Web front end")
    assert directory.by_key(b"sync-key") == Client("sync", "Nightly sync")
    assert directory.by_key(b"bi-1") == directory.by_key(b"bi-2") == Client("bi", None)
    assert directory.by_id("ops") == Client("ops", "Operations")
    assert directory.by_key(b"ops") is None
    assert len(directory) == 4


def test_csv_names_clients(tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_text(f"id,name,key,key_sha256\nweb,Web front end,web-key,\nsync,Nightly sync,,{sha256('sync-key')}\n")
    directory = ClientDirectory(str(path))
    assert directory.by_key(b"web-key") == Client("web", "Web front end")
    assert directory.by_key(b"sync-key") == Client("sync", "Nightly sync")


def test_no_key_is_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    path.write_text(json.dumps(CLIENTS))
    assert "web-key" not in repr(vars(ClientDirectory(str(path))))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "neither JSON nor CSV"),
        ("[" * 100_000, "neither JSON nor CSV"),
        ('{"clients": 3}', "not a list of clients"),
        ('[{"name": "no id"}]', "client 1: no id"),
        ('[{"id": "a"}, 7]', "client 2: no id"),
        ('[{"id": "a", "key_sha256": "zz"}]', "not 64 hex digits"),
        ('[{"id": "a", "key": "k"}, {"id": "b", "key": "k"}]', "another client's"),
        ("\xff\xfe", "neither JSON nor CSV"),
    ],
)
def test_a_bad_file_is_reported_with_its_place_and_leaves_no_client(
    tmp_path: Path, body: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clients.json"
    path.write_bytes(body.encode("latin-1"))
    assert len(ClientDirectory(str(path))) == 0
    assert says in caplog.text
    assert str(path) in caplog.text


def test_a_missing_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(ClientDirectory(str(tmp_path / "none.json"))) == 0
    assert "OTEL_AUDIT_CLIENTS" in caplog.text


def wait_for_version(directory: ClientDirectory, version: int) -> None:
    deadline = time.monotonic() + 10
    while directory.version < version:
        assert time.monotonic() < deadline
        directory._look_after_s = 0
        directory.refresh()
        threading.Event().wait(0.005)


def test_a_changed_file_is_read_again_and_a_broken_one_keeps_what_was_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "clients.json"
    path.write_text('[{"id": "a", "key": "k"}]')
    directory = ClientDirectory(str(path))
    fresh = tmp_path / "fresh.json"
    fresh.write_text('[{"id": "b", "key": "k"}]')
    fresh.replace(path)
    wait_for_version(directory, 2)
    assert directory.by_key(b"k") == Client("b", None)

    path.write_text("broken")
    deadline = time.monotonic() + 10
    while "neither JSON nor CSV" not in caplog.text:
        assert time.monotonic() < deadline
        directory._look_after_s = 0
        directory.refresh()
        threading.Event().wait(0.005)
    assert directory.by_key(b"k") == Client("b", None)


def test_looking_for_changes_is_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clients.json"
    path.write_text("[]")
    directory = ClientDirectory(str(path))
    looks = []
    monkeypatch.setattr(directory, "_state", lambda: looks.append(1) or directory._seen)  # type: ignore[func-returns-value]
    for _ in range(1000):
        directory.refresh()
    assert len(looks) <= 2
