"""The next process that spools in the same place: ships what others left there, and ends when nothing is left.

With an argument, it waits only for sources whose names begin so.
"""

import sys
import time

from opentelemetry.sdk.resources import Resource

from otel_audit.capture import autoload
from otel_audit.capture.outbox import sources


def main() -> None:
    assert autoload.install()
    capture = autoload._installed
    assert capture is not None
    capture.recorder.begin(Resource.create({}))
    spool = capture.recorder.spool
    deadline = time.monotonic() + 60
    prefix = sys.argv[1] if len(sys.argv) > 1 else ""
    while left := [f for f in sources(spool.folder.parent) if f != spool.folder and f.name.startswith(prefix)]:
        if time.monotonic() > deadline:
            sys.exit(f"not shipped: {left}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
