"""Runs a program in which each record takes long to be made: whoever answers before it is made, is found out.

slowly.py -m MODULE ARGUMENTS, or slowly.py FILE ARGUMENTS
"""

import runpy
import sys
import time
from typing import Any

from otel_audit.capture.recorder import Recorder

_record = Recorder.record


def record(self: Recorder, *args: Any, **more: Any) -> bool:
    time.sleep(0.3)
    return _record(self, *args, **more)


Recorder.record = record  # type: ignore[method-assign]
sys.path.insert(0, "")
if sys.argv[1] == "-m":
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv[:] = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
