"""Opening a log: with 250,000 unsealed records, and with the retries of the last 15 minutes to remember."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.otlpgen import iter_bodies
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.otlp import Decoder

Row = dict[str, Any]

RECORDS: Final = 250_000
_BODY: Final = 1000
_OPEN: Final = """
import json, sys, time
from otel_audit.auditlog import AuditLog
started = time.perf_counter()
log = AuditLog.open(sys.argv[1])
opened = time.perf_counter() - started
stats = log.stats()
print(json.dumps({"seconds": opened, "unsealed": stats.last_seq - stats.sealed_seq, "remembered": stats.remembered}))
log.close()
"""


def _fill(folder: Path, records: int) -> None:
    decoder = Decoder()
    settings = LogSettings(segment_rows=records + 1, segment_age_s=86_400)
    with AuditLog.open(folder, settings) as log:
        waiting = [log.submit(decoder.decode(body)) for body in iter_bodies(records // _BODY, _BODY)]
        for future in waiting:
            future.result()


def _opened(folder: Path) -> dict[str, Any]:
    """One open in a fresh process, its imports not counted."""
    out = subprocess.run([sys.executable, "-c", _OPEN, str(folder)], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out)
    return found


def run(records: int = RECORDS, runs: int = 5) -> list[Row]:
    """Median seconds to open such a log, and to the exit code of `otel-audit --version` beside it."""
    with tempfile.TemporaryDirectory(prefix="otel-audit-bench-") as name:
        folder = Path(name) / "log"
        _fill(folder, records)
        found = sorted((_opened(folder) for _ in range(runs)), key=lambda f: f["seconds"])
        middle = found[len(found) // 2]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import otel_audit.auditlog"], check=True)
        imported = time.perf_counter() - started
    note = f"{middle['unsealed']:,} unsealed records, {middle['remembered']:,} identities remembered; aim: under 2 s"
    return [
        {"name": "open the log", "value": middle["seconds"], "unit": "s", "note": note},
        {"name": "process start and imports", "value": imported, "unit": "s", "note": "once, beside it"},
    ]
