import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("OTEL_AUDIT_LONG") == "1":
        return
    skip = pytest.mark.skip(reason="a long run: set OTEL_AUDIT_LONG=1")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is expected to be there (`.ci/run`), a skip is a failure."""
    report: Any = yield
    # Reports travel between processes, which a lone surrogate in a captured log cannot.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    required = os.environ.get("OTEL_AUDIT_REQUIRE_ALL") == "1" and "long" not in item.keywords
    if report.skipped and required and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but OTEL_AUDIT_REQUIRE_ALL=1: {report.longrepr}"
    return report  # type: ignore[no-any-return]


@pytest.fixture(autouse=True, scope="session")
def spools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is spooled in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount to make a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
