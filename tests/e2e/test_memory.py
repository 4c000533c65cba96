"""Many runs in one process: memory is given back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.short_runs import SHORT
from helpers.typed import typed

# Of 30 runs of different methods and seeds the resident memory after each, in one process as in a sweep.
PROGRAM = """
import gc, json, sys
from pathlib import Path
import psutil
from kdx.config.compose import compose_config
from kdx.experiment import run

sizes = []
for number in range(30):
    method = ("st-vbd", "kddp", "bdk")[number % 3]
    run(compose_config([*sys.argv[1:], f"method={method}", f"seed={number}"]))
    gc.collect()
    sizes.append(psutil.Process().memory_info().rss)
print(json.dumps(sizes))
"""


@pytest.mark.slow
def test_thirty_runs_in_one_process_do_not_grow(tmp_path: Path) -> None:
    words = typed([*SHORT, "trainer.epochs=2", "device.gemm=default", "device.compile=false"])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KDX_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout.splitlines()[-1])
    assert len(sizes) == 30
    # The first runs import what they need and fill torch's caches.
    assert max(sizes[5:]) < 1.05 * sizes[4], [round(size / 2**20, 1) for size in sizes]
