"""Virtual environments with other people's versions, built once and kept outside of the repository.

`$XDG_CACHE_HOME/otel-audit/venvs/<name>-<hash>`; the hash is of what is asked for, of the interpreter, and for what is not
pinned of the week, so that "newest" does not grow old.
"""

import datetime as dt
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

OLDEST = {"sdk": "1.44.0", "instrumentation": "0.65b0"}
"""The lower ends of the ranges in pyproject.toml; a unit test compares them."""
_SERVERS = ("fastapi", "flask", "uvicorn")

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "oldest": (
        f"opentelemetry-sdk=={OLDEST['sdk']}",
        f"opentelemetry-exporter-otlp=={OLDEST['sdk']}",
        f"opentelemetry-instrumentation=={OLDEST['instrumentation']}",
        f"opentelemetry-distro=={OLDEST['instrumentation']}",
        "opentelemetry-instrumentation-fastapi",
        "opentelemetry-instrumentation-flask",
        "opentelemetry-instrumentation-grpc",
        *_SERVERS,
    ),
    # ddtrace and logfire take any version; neither does anything unless it is started.
    "newest": (
        "opentelemetry-sdk",
        "opentelemetry-exporter-otlp",
        "opentelemetry-distro",
        "opentelemetry-instrumentation-fastapi",
        "opentelemetry-instrumentation-flask",
        "opentelemetry-instrumentation-grpc",
        "ddtrace",
        "logfire",
        *_SERVERS,
    ),
    "aws": ("aws-opentelemetry-distro", "opentelemetry-exporter-otlp", *_SERVERS),
    "elastic": (
        "elastic-opentelemetry",
        "opentelemetry-exporter-otlp",
        "opentelemetry-instrumentation-fastapi",
        "opentelemetry-instrumentation-flask",
        *_SERVERS,
    ),
}


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "otel-audit" / "venvs"


def environment(name: str) -> Path:
    """The folder of a virtual environment, built if need be."""
    wanted = REQUIREMENTS[name]
    week = dt.datetime.now(dt.UTC).date().isocalendar()[:2]
    digest = hashlib.sha256(repr((sorted(wanted), sys.version, week)).encode()).hexdigest()[:12]
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{digest}"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            for old in cache.glob(f"{name}-*"):
                shutil.rmtree(old)
            _build(folder, wanted)
            (folder / "complete").touch()
    return folder


def _build(folder: Path, wanted: tuple[str, ...]) -> None:
    venv.create(folder, with_pip=False)
    words = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", *wanted]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def install_checkout(folder: Path) -> Path:
    """A folder for PYTHONPATH in which this checkout is an installed package, with its entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = folder / "site"
    info = site / f"otel_audit-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (site / "otel_audit").symlink_to(ROOT / "otel_audit")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: otel-audit\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site
