import os
import threading
from pathlib import Path

import pytest

from otel_audit._receiver_reload import Reloader, ReloadStats, Watched
from otel_audit.errors import ConfigError


def watched(path: Path, interval_s: float = 10.0) -> Watched[str]:
    def load() -> str:
        try:
            text = path.read_text()
        except OSError as e:
            raise ConfigError("read", path, str(e)) from e
        if text == "fault":
            raise ValueError("nobody expected this")
        return text

    return Watched("the files", [str(path)], load, interval_s)


def test_a_file_is_read_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    files = watched(path)
    files.poll()
    assert (files.current, files.reloads) == ("1", 0)
    path.write_text("22")
    files.poll()
    files.poll()
    assert (files.current, files.reloads) == ("22", 1)


def test_a_file_put_in_the_place_of_another_is_seen_although_it_is_as_old_and_as_large(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    files = watched(path)
    other.write_text("2")

    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    files.poll()
    assert files.current == "2"


def test_a_folder_that_was_away_for_a_while_leaves_nothing_stale(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "a").write_text("1")
    files = watched(folder / "a")
    folder.rename(tmp_path / "away")
    files.poll()
    assert (files.current, files.stale) == ("1", True)
    (tmp_path / "away").rename(folder)
    files.poll()
    assert (files.current, files.stale) == ("1", False)


def test_a_fault_nobody_expected_changes_nothing_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    files = watched(path)
    path.write_text("fault")
    files.poll()
    assert (files.current, files.stale) == ("1", True)
    assert "nobody expected this" in caplog.text
    assert "Traceback" in caplog.text


def test_the_reloader_looks_and_counts_until_it_is_stopped(tmp_path: Path) -> None:
    path, used = tmp_path / "a", threading.Semaphore(0)
    path.write_text("1")

    def load() -> str:
        text = path.read_text()
        if text == "2":
            used.release()
        return text

    reloader = Reloader([Watched("the files", [str(path)], load, 0.01), watched(tmp_path / "a", 3600)])
    reloader.start()
    (tmp_path / "b").write_text("2")
    (tmp_path / "b").replace(path)
    assert used.acquire(timeout=30)
    reloader.stop()
    assert reloader.stats() == ReloadStats(reloads=1)
    assert not [t for t in threading.enumerate() if t.name == "otlp-reload"]


def test_a_reloader_of_nothing_needs_no_thread() -> None:
    reloader = Reloader([])
    reloader.start()
    reloader.stop()
    assert reloader.stats() == ReloadStats()
