"""`otel-audit spool`: what waits in a spool on this machine, and shipping it by hand.

For the one who kept the disk of a dead container, or changed the endpoint while records were waiting. Needs the base
install only.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from otel_audit import names
from otel_audit.capture import settings
from otel_audit.capture.delivery import Delivery
from otel_audit.capture.frames import Frame
from otel_audit.capture.leftovers import Waiting, waiting
from otel_audit.capture.outbox import Outbox
from otel_audit.capture.settings import Destination
from otel_audit.capture.spool import candidates
from otel_audit.errors import AuditError, LockedError

__all__ = ["main", "ship"]

_BATCH_RECORDS: Final = 512
_BATCH_BYTES: Final = 1024 * 1024


class _GaveUpError(Exception):
    """The time for shipping is over."""


def ship(found: Sequence[Waiting], destination: Destination, *, timeout_s: float) -> tuple[int, int]:
    """Ship what dead processes have left; a folder is removed once the destination answers for all of it.

    Args:
        found: whose; the living, who ship for themselves, are passed over.
        destination: where to, whatever it was meant for.
        timeout_s: how long to go on trying, in all.

    Returns:
        How many records the destination took, and how many it refused.
    """
    deadline = time.monotonic() + timeout_s

    def wait(seconds: float, _: bool) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _GaveUpError
        time.sleep(min(seconds, left_s))

    delivery = Delivery(destination, wait=wait, on_refused=_say_refused)
    try:
        for one in found:
            outbox = None if one.alive else Outbox.adopt(one.folder)
            if outbox is not None:
                _ship(outbox, delivery, one.folder.parent / "refused.spool")
    except _GaveUpError:
        _say(f"{destination} does not take them: {delivery.outage}")
    finally:
        delivery.transport.close()
    return delivery.delivered, delivery.refused


def _ship(outbox: Outbox, delivery: Delivery, refused_path: Path) -> None:
    delivery.refused_path = refused_path
    try:
        while batch := outbox.read(_BATCH_RECORDS, _BATCH_BYTES):
            if not delivery.deliver(batch):
                break
            outbox.answered()
        else:
            outbox.clear_away()
            return
    finally:
        outbox.close()
    raise LockedError("ship a spool to", delivery.destination, "another process has it open", "stop that process first")


def _say_refused(batch: Sequence[Frame], count: int, reason: str) -> None:
    _say(f"{count} of the records {batch[0].seq} to {batch[-1].seq} refused: {reason}")


def _say(text: str) -> None:
    sys.stderr.write(f"otel-audit: {text}\n")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


# --- the command --------------------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-audit spool",
        description="What waits in a spool on this machine; with `ship`, hand over what dead processes have left.",
        epilog=f"With `ship` the destination is that of the environment ({names.ENV_ENDPOINT} and so on), as for a service.",
    )
    parser.add_argument("what", nargs="?", choices=("list", "ship"), default="list")
    parser.add_argument(
        "--spool-dir", metavar="DIR", help=f"by default ${names.ENV_SPOOL_DIR}, else where capture spools"
    )
    parser.add_argument("--endpoint", metavar="URL", help=f"instead of {names.ENV_ENDPOINT}")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds to go on trying (60)")
    parser.add_argument("--json", action="store_true", help="one JSON object a source")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code: 0 good, 1 something could not be shipped, 2 usage."""
    asked = _parser().parse_args(arguments)
    wanted = asked.spool_dir or os.environ.get(names.ENV_SPOOL_DIR, "").strip()
    found = waiting(Path(wanted) if wanted else next((p for p in candidates(None) if p.is_dir()), Path()))
    if asked.what == "list":
        _print(found, as_json=asked.json)
        return 0
    try:
        destination = settings.destination(endpoint=asked.endpoint)
        taken, refused = ship(found, destination, timeout_s=asked.timeout)
    except AuditError as e:
        _say(f"{e}")
        return 1
    left = sum(one.records for one in found if not one.alive) - taken - refused
    _say(f"{taken} records shipped to {destination}, {refused} refused, {left} still wait")
    return 0 if not left and not refused else 1


def _print(found: Sequence[Waiting], *, as_json: bool) -> None:
    if not found and not as_json:
        _say("nothing waits in the spool")
    for one in found:
        if as_json:
            said = {
                "source": one.folder.name,
                "destination": one.destination,
                "process": "alive" if one.alive else "dead",
                "records": one.records,
                "bytes": one.size_bytes,
                "folder": str(one.folder),
            }
            _write(json.dumps(said, sort_keys=True))
            continue
        state = "its process lives and ships them" if one.alive else "its process is dead"
        when = datetime.fromtimestamp(one.oldest_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if one.size_bytes else "-"
        _write(f"{one.records}\t{one.destination}\t{one.folder.name}\t{when}\t{state}")
