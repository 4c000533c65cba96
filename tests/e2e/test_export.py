"""Exports and timings of a real, short run on scikit-learn's digits, through the real command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.short_runs import TINY, folder_of, metrics

from kdx.bench.results import read_inference
from kdx.bench.timing import Thresholded, bench, write_bench
from kdx.cli.bench_tables import print_bench
from kdx.cli.main import main
from kdx.deploy import load
from kdx.errors import UserError
from kdx.export import export
from kdx.export.student import finished_student, load_shrunk
from kdx.export.verification import NotTheSame
from kdx.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with nine zeros in ten weights."""
    base = tmp_path_factory.mktemp("exported")
    words = [sys.executable, "-m", "kdx", "train", *TINY, "method=prune", "method.sparsity=0.9", f"outputs={base}"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return folder_of(result, base)


@pytest.mark.parametrize("words", ["shrink", "csr", "csr values=int8", "csr values=fp16", "onnx", "torch"])
def test_every_format(run: Path, words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run), *f"format={words}".split()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    path = Path(lines[-1])
    assert path.parent == run / "exports"
    assert path.is_file()
    assert max(map(len, lines[:-1])) <= 80
    for name in ("test error %", "largest logit difference", "parameters", "multiplications", "file"):
        assert any(line.startswith(name) for line in lines)


def test_the_python_interface(run: Path, tmp_path: Path):
    exported = export(run, "csr", values="int8", out=tmp_path / "small")
    assert exported.path == tmp_path / "small"
    assert exported.bytes == (tmp_path / "small").stat().st_size < exported.student_bytes
    assert exported.parameters <= exported.student_parameters
    assert load(tmp_path / "small").image_shape == (1, 28, 28)
    student = finished_student(run)
    assert exported.student_test_error_percent == student.figures["test_error_percent"]
    assert list(tmp_path.iterdir()) == [tmp_path / "small"], "nothing else is left"
    export(run, "shrink", out=tmp_path / "shrunk")
    assert load_shrunk(tmp_path / "shrunk").fc1.weight.count_nonzero() > 0


def test_what_is_not_the_same_gets_no_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kdx.export.verification.TOLERANCE", -1.0)
    with pytest.raises(NotTheSame):
        export(run, "csr", out=tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "export: no run is given; allowed: the folders or ids of finished runs"),
        ("format=csr", "export: no run is given; allowed: the folders or ids of finished runs"),
        ("RUN", "format: no value is given; allowed: csr, onnx, shrink, torch"),
        ("RUN format=cvs", "format: 'cvs' is not known; did you mean 'csr'? allowed: csr, onnx, shrink, torch"),
        ("RUN format=csr values=int4", "values: 'int4' is not known; did you mean 'int8'? allowed: fp16, fp32, int8"),
        ("RUN format=onnx values=int8", "values: 'int8' is not allowed with format=onnx, only with csr; allowed: fp32"),
        ("RUN fromat=csr", "key: 'fromat' is not known; did you mean 'format'? allowed: format, out, values"),
        ("RUN format=csr format=onnx", "format: 'onnx' is a second value beside 'csr'; allowed: one"),
        ("RUN RUN format=csr", "export: 'RUN' is a second run; allowed: one"),
        ("RUN format=csr out=.", "out: '.' is a folder; allowed: a file"),
        ("RUN format=csr --quiet", "option: '--quiet' is not known; allowed: --help, -h"),
        ("no format=csr", "run: 'no' is not known; allowed: the folder of a finished run (outputs/runs holds none)"),
    ],
)  # fmt: skip
def test_mistakes(
    run: Path,
    words: str,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDX_OUTPUTS", raising=False)
    assert main(["export", *words.replace("RUN", str(run)).split()]) == 2
    assert capsys.readouterr() == ("", f"kdx: {line.replace('RUN', str(run))}\n")


def test_bench(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kdx.deploy.choice.SECONDS", 0.0)
    monkeypatch.setattr("kdx.bench.timing._cores", lambda: 1)
    monkeypatch.setattr("kdx.bench.timing.BATCHES", (1, 3))
    monkeypatch.setattr("kdx.bench.timing.cores_taken_by_others", lambda: lambda: None)
    measured = bench(run, seconds=0.001)
    print_bench(measured)
    names = {(timing.kind.name, timing.kind.runtime, timing.latency.batch) for timing in measured.timings}
    kinds = {("teacher", "torch"), ("teacher", "onnxruntime")} | {
        (form, "torch") for form in ("dense", "masked", "shrunk")
    }
    kinds |= {(form, "kdx.deploy") for form in ("dense", "CSR", "auto")}
    kinds |= {(form, "onnxruntime") for form in ("dense", "shrunk")}
    assert names == {(*kind, batch) for kind in kinds for batch in (1, 3)}
    assert all(t.latency.p10_ms <= t.latency.median_ms <= t.latency.p90_ms for t in measured.timings)
    out = capsys.readouterr().out
    assert "Batch 3, 1 CPU thread" in out
    assert "CSR wins from %" in out
    assert max(map(len, out.splitlines())) <= 80

    write_bench(measured)
    # A machine whose only core others take leaves what is there.
    monkeypatch.setattr("kdx.bench.timing.cores_taken_by_others", lambda: lambda: 0.75)
    crowded = bench(run, seconds=0.001)
    assert (crowded.crowded, crowded.results) == ({(1, 1): 0.75, (1, 3): 0.75}, [])
    write_bench(crowded)
    written = read_inference(run)
    assert written is not None
    assert {"cpu", "cores", "torch", "date", "load_average", "seconds"} <= written.machine.keys()
    assert len(written.timings) == len(measured.timings)
    first, row = measured.timings[0], written.timings[0]
    assert (row.name, row.runtime, row.threads) == (first.kind.name, first.kind.runtime, 1)
    assert row.median_us == pytest.approx(1000 * first.latency.median_ms)
    for each, timed in zip(written.timings, measured.timings, strict=True):
        # A ratio is told where its interval does.
        assert (each.against_teacher is None) == (timed.teacher is None or timed.teacher.is_noise)
        assert each.against_teacher_low == (timed.teacher and pytest.approx(timed.teacher.low))
    sizes = {(row.name, row.runtime): row.file_bytes for row in written.timings}
    # The file of the run holds what the timed one holds.
    assert sizes["dense", "torch"] == (run / "student.safetensors").stat().st_size
    assert sizes["masked", "torch"] is None
    assert sizes["auto", "kdx.deploy"] == sizes["CSR", "kdx.deploy"]
    small, large = (sizes[name, "onnxruntime"] for name in ("shrunk", "dense"))
    assert small is not None
    assert large is not None
    assert small < large


def test_a_run_without_timings_has_none(tmp_path: Path):
    assert read_inference(tmp_path) is None


def test_a_mistake_in_bench(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", str(run), "seconds=0"]) == 2
    assert capsys.readouterr().err == "kdx: seconds: '0' is not allowed; allowed: a number above 0 and below 3600\n"


def test_the_commands_from_a_shell(started_kdx, run: Path):
    """The whole way once: no warning of a library reaches the screen."""
    result = started_kdx("export", str(run), "format=onnx")
    assert (result.returncode, result.stderr) == (0, "")
    assert started_kdx("export", "--help").stdout.startswith("usage: kdx export RUN format=FORMAT")
    assert started_kdx("bench", "--help").stdout.startswith("usage: kdx bench RUN ...")


def test_masking_in_every_forward_changes_nothing(run: Path):
    student = finished_student(run)
    images, _ = next(student.data.test.batches(10))
    layer = student.network.fc1
    assert (layer.weight == 0).any()
    assert (Thresholded(layer)(images.flatten(1)) == layer(images.flatten(1))).all()


def with_configuration(run: Path, base: Path, text: str | None) -> Path:
    """A copy of the run with another config.yaml, or none, as if it had been finished with it."""
    for file in run.iterdir():
        if file.is_file():
            (base / file.name).write_bytes(file.read_bytes())
    (base / "config.yaml").unlink()
    if text is not None:
        (base / "config.yaml").write_text(text)
    RunFolder(base).write_metrics(metrics(run))
    return base


def test_a_configuration_of_another_version_is_refused(run: Path, tmp_path: Path):
    text = (run / "config.yaml").read_text()
    other = with_configuration(run, tmp_path, text.replace("threads: 1", "threads: one"))
    with pytest.raises(
        UserError, match=r"written by another version of kdx or of a package: device\.threads: 'one' is not allowed"
    ):
        finished_student(other)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        finished_student(with_configuration(run, tmp_path, None))


def test_the_student_of_another_network_is_refused(run: Path, tmp_path: Path):
    text = (run / "config.yaml").read_text()
    assert text.count("  hidden:\n  - 8\n") == 2
    other = with_configuration(run, tmp_path, text.replace("  hidden:\n  - 8\n", "  hidden:\n  - 8\n  - 8\n"))
    with pytest.raises(UserError, match=r"made for another network: 'fc3\.weight' is absent there"):
        finished_student(other)


def test_a_student_that_was_changed_is_refused(run: Path, tmp_path: Path):
    other = with_configuration(run, tmp_path, (run / "config.yaml").read_text())
    (other / "student.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"student\.safetensors is damaged: its content is not what was written"):
        finished_student(other)
