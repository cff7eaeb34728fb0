"""The client directory: each format, hashed keys, reload, and no source that breaks it."""

import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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


def test_several_lines_of_one_client_are_one_client_with_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_text('id,key,name\nweb,k1,\n"web",k2,"Web\nfront end"\n')
    directory = ClientDirectory(str(path))
    assert directory.by_key(b"k1") == directory.by_key(b"k2") == directory.by_id("web")
    assert directory.by_id("web") == Client("web", "Web\nfront end")


YAML = """\
clients:
  - id: 007          # no number, no octal
    name: Bond
    key: 1e5
  - id: on
    keys: [0x10, ~]
  - {id: sync, key_sha256: "%s"}
"""


@pytest.mark.parametrize("ending", ["yaml", "yml", "YAML"])
@pytest.mark.parametrize("fast", [True, False])
def test_yaml_names_clients_and_changes_no_value(
    tmp_path: Path, ending: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.delattr("yaml.CBaseLoader", raising=False)
    path = tmp_path / f"clients.{ending}"
    path.write_text(YAML % sha256("sync-key"))
    directory = ClientDirectory(str(path))
    assert directory.by_key(b"1e5") == Client("007", "Bond")
    assert directory.by_key(b"0x10") == Client("on", None)
    assert directory.by_key(b"sync-key") == Client("sync", None)
    assert len(directory) == 3


def test_without_pyyaml_the_remedy_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "clients.yaml"
    path.write_text("- id: a\n")
    assert len(ClientDirectory(str(path))) == 0
    assert "install pyyaml, or write the directory as JSON or CSV" in caplog.text


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("c.yaml", "clients:\n  - id: a\n    key: 'top-secret\n", "line "),
        ("c.yaml", "- id: a\n  key: [top-secret\n- b: }\n", "line 3"),
        ("c.yaml", "- id: a\n- name: b\n", "client 2: no id"),
        ("c.yaml", "top-secret", "not a list of clients"),
        ("c.yaml", "", "not a list of clients"),
        ("c.yaml", "!!python/object/apply:os.system [exit]", "client 1: no id"),
        ("c.csv", "name,key\nx,top-secret\n", "line 1: the heading has no column id"),
        ("c.csv", "id,key\na,top-secret\n,b\n", "line 3: no id"),
        ("c.csv", "id,key\na,k\nb,k\n", "line 3: its key is another client's"),
        ("c.csv", 'id,key\na,"top-secret\n', "not CSV"),
        ("c.csv", "", "line 1: the heading has no column id"),
    ],
)
def test_a_bad_file_is_reported_with_its_line_and_shows_no_key(
    tmp_path: Path, name: str, body: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    path.write_text(body)
    assert len(ClientDirectory(str(path))) == 0
    assert says in caplog.text
    assert str(path) in caplog.text
    assert "top-secret" not in caplog.text


# --- a callable of the service's own ---------------------------------------------------------------------------------------
@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("own_clients")
    monkeypatch.setitem(sys.modules, "own_clients", made)
    return made


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@pytest.mark.parametrize("give", [list, tuple, iter, lambda entries: {"clients": entries}])
def test_a_callable_gives_clients_when_the_application_is_there(
    module: ModuleType, give: Callable[[list[dict[str, object]]], object]
) -> None:
    directory = ClientDirectory("own_clients:clients")
    assert len(directory) == 0, "nothing is imported before the application"
    module.clients = lambda: give(CLIENTS)  # type: ignore[arg-type, attr-defined]
    directory.prepare()
    until(lambda: len(directory) == 4)
    assert directory.by_key(b"web-key") == Client("web", "Web front end")


def test_a_callable_is_called_again_in_the_background_and_a_failure_keeps_what_was_known(
    module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    threads: list[str] = []
    answers: list[object] = [[{"id": "a", "key": "k"}], [{"id": "a", "key": "k"}], [{"id": "b", "key": "k"}]]

    def clients() -> object:
        threads.append(threading.current_thread().name)
        if not answers:
            raise RuntimeError("database away")
        return answers.pop(0)

    module.clients = clients  # type: ignore[attr-defined]
    directory = ClientDirectory("own_clients:clients")
    directory.prepare()
    until(lambda: len(directory) == 1)
    for _ in range(100):
        directory.refresh()
    assert len(threads) == 1, "once a minute"

    directory._look_after_s = 0
    directory.refresh()
    until(lambda: len(threads) == 2 and not directory._reading.locked())
    assert directory.version == 1, "the same clients: nothing that was derived from them is forgotten"
    directory._look_after_s = 0
    directory.refresh()
    until(lambda: directory.by_id("b") is not None)
    assert directory.version == 2

    def called_again(count: int) -> bool:
        directory._look_after_s = 0
        directory.refresh()
        return len(threads) >= count

    until(lambda: called_again(6))
    until(lambda: not directory._reading.locked())
    assert caplog.text.count("database away") == 1, "not each time"
    assert directory.by_key(b"k") == Client("b", None)
    assert threading.current_thread().name not in threads


def test_a_child_reads_also_when_its_parent_was_reading_as_it_forked(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    path.write_text('[{"id": "a"}]')
    directory = ClientDirectory(str(path))
    directory._reading.acquire()  # by a thread that the child does not have
    path.write_text('[{"id": "a"}, {"id": "b"}]')
    directory.after_fork()
    wait_for_version(directory, 2)
    assert len(directory) == 2


def test_a_callable_that_hangs_holds_up_no_call_for_long(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_audit.capture._watch._FIRST_CALL_WAIT_S", 0.01)
    release = threading.Event()

    def clients() -> list[dict[str, str]]:
        assert release.wait(60)
        return [{"id": "a"}]

    module.clients = clients  # type: ignore[attr-defined]
    directory = ClientDirectory("own_clients:clients")
    directory.prepare()
    assert not release.is_set()
    assert len(directory) == 0
    release.set()
    until(lambda: len(directory) == 1)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no_such_module_x:clients", "ModuleNotFoundError"),
        ("own_clients:nothing", "AttributeError"),
        ("own_clients:NUMBER", "cannot be called"),
        ("own_clients:text", "not a list of clients"),
        ("own_clients:nameless", "client 1: no id"),
    ],
)
def test_a_bad_callable_is_reported(
    module: ModuleType, source: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    module.NUMBER = 7  # type: ignore[attr-defined]
    module.text = lambda: "text"  # type: ignore[attr-defined]
    module.nameless = lambda: [{"name": "x"}]  # type: ignore[attr-defined]
    directory = ClientDirectory(source)
    directory.prepare()
    until(lambda: says in caplog.text)
    assert source in caplog.text
    assert len(directory) == 0


def test_a_file_may_be_called_like_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own:clients").write_text('[{"id": "a"}]')
    assert len(ClientDirectory("own:clients")) == 1


def test_no_key_is_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    path.write_text(json.dumps(CLIENTS))
    assert "web-key" not in repr(vars(ClientDirectory(str(path))))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"clients": 3}', "not a list of clients"),
        ('[{"name": "no id"}]', "client 1: no id"),
        ('[{"id": "a"}, 7]', "client 2: no id"),
        ('[{"id": "a", "key_sha256": "zz"}]', "not 64 hex digits"),
        ('[{"id": "a", "key": "k"}, {"id": "b", "key": "k"}]', "another client's"),
        ("\xff\xfe", "not JSON"),
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
    while "not JSON" not in caplog.text:
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
