import sys, tempfile, time
from pathlib import Path
from tests.collector.cell import run_fault
from tests.collector.faults import GROUPS
wanted = sys.argv[1]
noq = "--noqueue" in sys.argv
keep = Path("/tmp/faults-out")
import dataclasses, shutil, traceback
shutil.rmtree(keep, ignore_errors=True); keep.mkdir()
for g, fs in GROUPS.items():
    for i, f in enumerate(fs):
        if wanted in f.name and (f.seconds or wanted):
            if noq: f = dataclasses.replace(f, queue=False)
            t = time.time()
            try:
                o = run_fault(f, keep / f"{g}{i}".replace(" ","_"), f.seconds or f.long_seconds)
                print(f.name, o.verdict, o, round(time.time()-t,1), flush=True)
            except Exception:
                traceback.print_exc()
