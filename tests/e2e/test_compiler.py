"""Machines whose C++ compiler is there but does not work."""

from pathlib import Path

import pytest

SHORT = ("dataset=digits", "method=vanilla", "trainer.epochs=1", "teacher.trainer.epochs=1", "student.hidden=[8]")
BROKEN = {"CXX": "false"}


@pytest.mark.parametrize("choice", ["auto", "true"])
def test_a_compiler_that_fails(started_kdx, tmp_path: Path, choice: str) -> None:
    # auto compiles long runs only, so the run is made to look long.
    run = "from kdx.cli.main import main; sys.exit(main())"
    script = f"import sys, kdx.device.backend as d; d.COMPILE_SECONDS = 0; {run}"
    words = ("train", *SHORT, "teacher.hidden=[8]", "device.threads=1", f"device.compile={choice}")
    result = started_kdx(*words, python=("-c", script), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), **BROKEN)
    if choice == "auto":
        assert result.returncode == 0, result.stderr
        assert "not compiled, the compiler failed" in result.stderr
    else:
        assert result.returncode == 2
        assert "device.compile: 'true' failed" in result.stderr
        assert "Traceback" not in result.stderr
