import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from kdx import formatting
from kdx.cli.comparison import print_comparison
from kdx.cli.run_tables import print_run
from kdx.errors import UserError
from kdx.runs.reader import finished_run
from kdx.runs.sanity import sanity_warnings

FIGURES = {
    "dataset": "mnist", "method": "kd-svd", "student": "lenet-300-100", "teacher": "mlp-1200-1200", "seed": 0,
    "epochs": 50, "test_error_percent": 1.33, "val_error_percent": 1.45, "teacher_test_error_percent": 1.13,
    "parameters": 266610, "weights": 266200, "nonzero_weights": 8382, "sparsity_percent": 96.851, "R_s": 31.76,
    "R_c": 8.984, "dense_bytes": 1066440, "csr_bytes": 70348, "teacher_dense_bytes": 9580840,
    "memory_compression": 136.19, "latency_ms": 0.0474, "csr_latency_ms": 0.0455, "csr_runtime": "csr scipy",
    "multiplications": 266200, "nonzero_multiplications": 8382, "teacher_multiplications": 2392800,
    "train_seconds": 187.3, "seconds_per_epoch": 1.87, "device": "cpu", "kdx_version": "0.1", "torch_version": "2.15",
}  # fmt: skip
LAYERS = """layer,shape,weights,nonzero,sparsity_percent,dense_bytes,csr_bytes
fc1,300x784,235200,6563,97.21,940800,53708
fc3,10x100,1000,1000,0.0,4000,8044
"""
LATENCY = """\
device,threads,runtime,batch,median_ms,p10_ms,p90_ms,repetitions,against_dense,against_dense_low,against_dense_high
cpu,1,dense,1,0.0400,0.0390,0.0500,1000,,,
cpu,1,dense,1024,4.0,3.9,5.0,40,,,
cpu,1,csr scipy,1,0.0600,0.0590,0.0700,1000,0.64,0.625,0.8
cpu,1,csr scipy,1024,1.0,0.9,1.5,99,4.0,3.9,4.25
cpu,1,csr torch,1,0.0500,0.0490,0.0700,1000,,0.5,522.25
cpu,1,csr torch,1024,1.0,0.9,1.5,99,0.9999,0.98,1.02
"""
CONFIG = {
    "dataset": {"name": "mnist", "root": None}, "teacher": {"name": "mlp-1200-1200", "trainer": {"lr": 0.001}},
    "student": {"name": "lenet-300-100", "hidden": [300, 100]}, "trainer": {"epochs": 50, "lr": 0.001},
    "method": {"name": "kd-svd", "parts": ["hint", "svd"], "T": 4.0}, "device": {"threads": None}, "seed": 0,
    "outputs": "outputs",
}  # fmt: skip


def make_run(outputs: Path, run_id: str = "3fa9c01b77e1", config: dict | None = None, **figures: object) -> Path:
    content = {"run_id": run_id, **FIGURES, **figures}
    folder = outputs / "runs" / "mnist" / str(content["student"]) / str(content["method"]) / run_id
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "layers.csv").write_text(LAYERS)
    (folder / "latency.csv").write_text(LATENCY)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or CONFIG))
    return folder


def merged(**groups: dict | int) -> dict:
    return {
        key: {**value, **groups.get(key, {})} if isinstance(value, dict) else groups.get(key, value)
        for key, value in CONFIG.items()
    }


def cells(output: str, start: str) -> list[str]:
    """The words of the only line that starts with `start`."""
    (line,) = [line for line in output.splitlines() if line.startswith(start)]
    return line[len(start) :].split()


def test_a_run_is_told_in_80_plain_columns(tmp_path, capsys):
    print_run(make_run(tmp_path))
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    assert "…" not in output
    assert "WARNING" not in output
    assert cells(output, "test error %") == ["1.13", "1.33", "+0.20", "points"]
    assert cells(output, "parameters") == ["2,395,210", "266,610", "R_c", "8.98x"]
    assert cells(output, "nonzero weights") == ["8,382", "R_s", "31.76x"]
    assert cells(output, "multiplications") == ["2,392,800", "266,200", "8.99x", "fewer"]
    assert cells(output, "nonzero multiplications") == ["8,382", "285.5x", "fewer"]
    assert cells(output, "bytes, CSR") == ["70.35", "kB", "memory", "compression", "136.2x"]
    assert cells(output, "fc1") == ["300x784", "235,200", "6,563", "97.21", "940.80", "kB", "53.71", "kB"]
    assert "1 matrix is larger as CSR than dense." in output
    assert "trained in 3 min 7 s (1.87 s per epoch) on cpu" in output


def test_csr_that_is_slower_is_said_to_be(tmp_path, capsys):
    print_run(make_run(tmp_path))
    lines = [line.split() for line in capsys.readouterr().out.split("Latency")[1].splitlines()]
    times = ["0.0600", "0.0590", "-", "0.0700", "1,000"]
    slower, faster = (
        lines.index(["cpu", "csr", "scipy", "1", *times, "1.56x", "SLOWER"]),
        lines.index(["cpu", "csr", "scipy", "1,024", "1.00", "0.9000", "-", "1.50", "99", "4.00x", "faster"]),
    )
    assert (lines[slower + 1], lines[faster + 1]) == (["[1.25,", "1.60]"], ["[3.90,", "4.25]"])
    equal = lines.index(["cpu", "csr", "torch", "1,024", "1.00", "0.9000", "-", "1.50", "99", "equal"])
    assert lines[equal + 1] == ["[0.98,", "1.02]"]


def test_a_ratio_that_is_noise_is_said_to_be(tmp_path, capsys):
    run = make_run(tmp_path)
    print_run(run)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    noise = lines.index(["cpu", "csr", "torch", "1", "0.0500", "0.0490", "-", "0.0700", "1,000", "too", "noisy:"])
    assert lines[noise + 1] == ["0.50", "-", "522.25x"]
    # Earlier versions compared medians: their files have no rounds.
    early = [",".join(line.split(",")[:8]) for line in LATENCY.splitlines()]
    (run / "latency.csv").write_text("\n".join(early) + "\n")
    print_run(run)
    output = capsys.readouterr().out
    assert not any(text in output for text in ("faster", "SLOWER", "noisy"))
    assert ["cpu", "csr", "scipy", "1", "0.0600", "0.0590", "-", "0.0700", "1,000", "-"] in [
        line.split() for line in output.splitlines()
    ]


def test_worthless_results_are_warned_about(tmp_path, capsys):
    figures = {"nonzero_weights": 0, "R_s": None, "test_error_percent": 85.0, "teacher_test_error_percent": 90.2}
    run = make_run(tmp_path, **figures)
    print_run(run)
    output = capsys.readouterr().out
    assert output.count("WARNING: ") == 3
    assert "pruned to nothing" in output
    assert "the student is no better than chance: test error 85.00 %" in output
    assert "the teacher is no better than chance: test error 90.20 %" in output
    assert "no weight is left" in output
    print_comparison([run])
    assert "none" in cells(capsys.readouterr().out, "3fa9c01b  kd-svd")


@pytest.mark.parametrize(("classes", "chance"), [(None, 85.0), (10, 85.0), (2, 45.0), (100, 98.5)])
def test_how_wrong_chance_is_depends_on_the_classes(classes: int | None, chance: float):
    figures = {} if classes is None else {"classes": classes}
    assert sanity_warnings(figures | {"test_error_percent": chance - 0.1}) == []
    (line,) = sanity_warnings(figures | {"test_error_percent": chance})
    assert line == f"the student is no better than chance: test error {chance:.2f} %."


def test_a_run_without_teacher_validation_and_latency(tmp_path, capsys):
    keys = (
        "teacher",
        "teacher_multiplications",
        "val_error_percent",
        "teacher_test_error_percent",
        "R_c",
        "teacher_dense_bytes",
        "latency_ms",
    )
    run = make_run(tmp_path, **dict.fromkeys((*keys, "memory_compression")))
    (run / "latency.csv").unlink()
    print_run(run)
    output = capsys.readouterr().out
    assert "teacher none" in output
    assert cells(output, "test error %") == ["-", "1.33"]
    assert cells(output, "multiplications") == ["-", "266,200"]
    assert "Latency" not in output
    print_comparison([run, run])
    assert cells(capsys.readouterr().out.replace("3fa9c01b", "x", 1), "3fa9c01b") == [
        "kd-svd", "1.33", "-", "31.76x", "-", "-", "-", "0.0455",
    ]  # fmt: skip


def test_names_in_brackets_are_no_markup(tmp_path, capsys):
    print_run(make_run(tmp_path, method="[bold]kd[/x]"))
    assert "[bold]kd[/x] on mnist" in capsys.readouterr().out


def test_comparison_shows_the_settings_that_differ(tmp_path, capsys):
    runs = [
        make_run(tmp_path, "aaaaaaaaaaaa"),
        make_run(tmp_path, "bbbbbbbbbbbb", merged(method={"T": 8.0}, device={"threads": 2}, dataset={"root": "/x"})),
    ]
    print_comparison(runs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dataset mnist, teacher mlp-1200-1200, student lenet-300-100, seed 0, epochs 50"
    assert lines[2].split() == ["run", "method", "T", "err", "%", "err", "%", "R_s", "R_c", "memory", "ms", "ms"]
    assert lines[4].split() == [
        "aaaaaaaa",
        "kd-svd",
        "4",
        "1.33",
        "1.45",
        "31.76x",
        "8.98x",
        "136.2x",
        "0.0474",
        "0.0455",
    ]
    assert lines[5].split()[2] == "8"


def test_wide_comparison_is_two_tables_and_the_rest_is_listed(tmp_path, capsys):
    other = merged(
        method={"name": "noisy-student", "parts": ["noise"], "sigma": 0.1, "alpha": 0.5, "lambda_V": 2.5},
        student={"name": "mlp-500-50", "hidden": [500, 50]},
        trainer={"epochs": 10, "lr": 1e-5},
        teacher={"trainer": {"lr": 0.01}},
        seed=7,
    )
    names = {"method": "noisy-student", "student": "mlp-500-50", "seed": 7, "epochs": 10}
    print_comparison([make_run(tmp_path, "aaaaaaaaaaaa"), make_run(tmp_path, "bbbbbbbbbbbb", other, **names)])
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    identity, results = [line.split() for line in output.splitlines() if line.startswith("bbbbbbbb ")]
    assert identity[:5] == ["bbbbbbbb", "noisy-student", "mlp-500-50", "7", "10"]
    assert identity[5] == "1e-05"
    assert results[1:4] == ["noisy-student", "1.33", "1.45"]
    shown = output.partition("also different: ")[2].splitlines()[0].split(", ") + output.split()
    assert {"sigma", "alpha", "lambda_V", "teacher.trainer.lr", "trainer.lr"} <= set(shown)
    # Implied by the names of student and method.
    assert not {"hidden", "parts"} & set(shown)


def test_runs_are_found_by_folder_id_and_beginning(tmp_path):
    first, second = make_run(tmp_path, "3fa9c01b77e1"), make_run(tmp_path, "3fb9c01b77e1", method="kd")
    assert finished_run(str(first), Path("/nowhere")) == first
    assert finished_run("3fb9c01b77e1", tmp_path) == second
    assert finished_run("3fa", tmp_path) == first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("3f", r"'3f' is ambiguous; allowed: one of .*3fa9c01b77e1, .*3fb9c01b77e1"),
        ("3fb9c01b77e2", "did you mean '3fb9c01b77e1'"),
        ("zzz", "'zzz' is not known; allowed: the folder, the id"),
        ("", "'' is not known"),
        ("*", "'[*]' is not known"),
        ("a" * 5000, "is not known"),
        ("7", "7777 is not a finished run, it has no metrics.json"),
        ("e", "metrics.json is damaged: it is not JSON"),
    ],
)
def test_mistaken_runs_are_told_in_one_line(tmp_path, given, message):
    make_run(tmp_path, "3fa9c01b77e1")
    make_run(tmp_path, "3fb9c01b77e1")
    (make_run(tmp_path, "7777") / "metrics.json").unlink()
    (make_run(tmp_path, "eeee") / "metrics.json").write_text('{"run_id": ')
    with pytest.raises(UserError, match=message) as error:
        finished_run(given, tmp_path)
    assert "\n" not in str(error.value)


def test_without_any_run_the_message_says_so(tmp_path):
    with pytest.raises(UserError, match="holds none"):
        finished_run("3f", tmp_path)
    with pytest.raises(UserError, match="not a finished run"):
        finished_run(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", "[]", "not a JSON object"),
        ("metrics.json", "{}", "run_id is missing"),
        ("metrics.json", json.dumps({"run_id": "x", **FIGURES, "R_s": [1]}), "R_s is"),
        ("metrics.json", json.dumps({"run_id": "x", **FIGURES, "R_s": "many"}), "expected a number"),
        ("metrics.json", "\udcff", "not JSON"),
        ("layers.csv", "layer,shape\nfc1,2x2\n", "expected the columns"),
        ("latency.csv", LATENCY.replace("3.9", "fast"), "expected the columns"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, file, content, message):
    run = make_run(tmp_path)
    (run / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        print_run(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", None])
def test_damaged_settings_are_told_in_one_line(tmp_path, content):
    run = make_run(tmp_path)
    (run / "config.yaml").unlink() if content is None else (run / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config.yaml"):
        print_comparison([run, run])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.size(999), "999 B"),
        (formatting.size(1_000), "1.00 kB"),
        (formatting.size(999_994), "999.99 kB"),
        (formatting.size(999_995), "1.00 MB"),
        (formatting.ratio(2910.4), "2,910x"),
        (formatting.ratio(99.994), "99.99x"),
        (formatting.sparsity(10**6, 1), ">99.99"),
        (formatting.sparsity(10**6, 10**6 - 1), "<0.01"),
        (formatting.sparsity(10, 0), "100.00"),
        (formatting.duration(3725), "1 h 2 min"),
        (formatting.duration(59.97), "60.0 s"),
        (formatting.milliseconds(None), "-"),
    ],
)
def test_figures_as_text(text, expected):
    assert text == expected


def test_tables_need_no_torch(tmp_path):
    script = (
        "import sys; from pathlib import Path; from kdx.cli.run_tables import print_comparison, print_run;"
        "from kdx.runs.reader import finished_run;"
        "run = finished_run(sys.argv[1], Path()); print_run(run); print_comparison([run, run]);"
        "assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    command = [sys.executable, "-c", script, str(make_run(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "136.2x" in done.stdout
