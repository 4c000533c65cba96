"""`kdx report`: damaged files, wrong words, and the commands of runs."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.report_tree import Seen, outputs_in, page

from kdx.cli.main import main
from kdx.config.compose import compose_config
from kdx.report.command_line import command_of
from kdx.runs.identity import run_id


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return outputs_in(tmp_path)


DAMAGES = {
    "paper/vs/table1/provenance.json": "half",
    "paper/vs/table1/table.csv": "half",
    "paper/vs/table1/runs.csv": "half",
    "paper/vs/figure1/figure.svg": "half",
    "paper/vs/figure1/runs.csv": "empty",
    "sweeps/my sweep/summary.csv": "half",
    "sweeps/my sweep/failed.csv": "binary",
    "runs/*/*/*/*/metrics.json": "half",
    "runs/*/*/*/*/config.yaml": "binary",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_and_the_rest_is_shown(name: str, outputs: Path, capsys: pytest.CaptureFixture[str]):
    path = next(outputs.glob(name))
    content = path.read_bytes()
    damaged = {"half": content[: len(content) * 2 // 3], "empty": b"", "binary": b"\xff\xfe: ["}
    path.write_bytes(damaged[DAMAGES[name]])
    text, err = page(outputs, capsys)
    assert err.count("\n") == 1
    assert err.startswith(f"kdx: damaged files are left out, the page says why: {path}")
    assert f">{path}<" in text
    seen = Seen(text)
    assert "1 damaged or half-written file is left out" in " ".join(seen.text.split())
    assert "paper-vs-table1-smoke" in seen.ids
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)


def test_several_damaged_files_are_one_line(outputs: Path, capsys: pytest.CaptureFixture[str]):
    for path in outputs.rglob("provenance.json"):
        path.write_text("{")
    for path in outputs.rglob("metrics.json"):
        path.write_text("[]")
    _, err = page(outputs, capsys)
    assert err.count("\n") == 1
    assert err.endswith(" and 3 more\n")


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDX_OUTPUTS", raising=False)
    (tmp_path / "empty").mkdir()
    makes = "allowed: a folder with results, which kdx train, kdx train -m and kdx reproduce make"
    for words, line in (
        ([], f"report: 'outputs' is not a folder; {makes}"),
        (["empty"], f"report: 'empty' holds no results; {makes}"),
        (["empty", "b"], "report: 'b' is a second folder; allowed: one"),
        (["empty", "fil=x"], "key: 'fil=x' is not known; did you mean 'file'? allowed: file"),
        (["empty", "file=empty"], "file: 'empty' is a folder; allowed: a file"),
        (["--hlep"], "option: '--hlep' is not known; did you mean '--help'? allowed: --help, -h"),
    ):
        assert main(["report", *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.replace("'fil'", "'fil=x'")) == ("", f"kdx: {line}\n")


def test_where_it_is_written(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.setenv("KDX_OUTPUTS", str(outputs))
    assert main(["report"]) == 0
    assert capsys.readouterr().out == f"{outputs / 'report.html'}\n"
    there = tmp_path / "new" / "page.html"
    assert main(["report", f"file={there}"]) == 0
    assert there.read_text().startswith("<!doctype html>")
    assert main(["report", "--help"]) == 0
    assert capsys.readouterr().out.split("\n")[1].startswith("usage: kdx report [OUTPUTS]")
    assert main(["--help"]) == 0
    assert "  report [OUTPUTS]  " in capsys.readouterr().out


def test_torch_is_not_imported(outputs: Path):
    program = (
        "import sys; from kdx.cli.main import main; main(['report', sys.argv[1]]);"
        "print([name for name in ('torch', 'matplotlib', 'hydra') if name in sys.modules])"
    )
    words = [sys.executable, "-c", program, str(outputs)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "method=kd method.T=2.5 seed=3",
        "dataset=digits student=mlp-500-50 method=paper/st-vbd dataset.train_size=200",
        "teacher=lenet5-caffe teacher.hidden=[40,30] student.hidden=[8] method=noisy teacher2=nin teacher2.seed=4",
        "dataset=cifar10 student=nin student.layers=[C5@96,MP3,C3@96] teacher=resnet56-v2 method=kddp",
        "method=ikd student=refined trainer.patience=3 device.threads=1",
    ],
)
def test_the_command_of_a_run_is_found_again(words: str, tmp_path: Path):
    config = compose_config([*words.split(), f"outputs={tmp_path}"])
    command = command_of(config.model_dump(mode="json"), run_id(config))
    program, train, *typed = shlex.split(command)
    assert (program, train) == ("kdx", "train")
    assert run_id(compose_config(typed)) == run_id(config)
    assert command_of(config.model_dump(mode="json"), "000000000000") == ""


def test_settings_that_no_command_makes(tmp_path: Path):
    content = compose_config(["method=kd"]).model_dump(mode="json")
    wrong = {**content, "method": {"name": "of another day"}}, {**content, "student": {"family": "mlp"}}, {}
    assert [command_of(settings, "000000000000") for settings in wrong] == ["", "", ""]


def test_a_run_alone_has_its_command_too(outputs: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(outputs / "paper")
    run = next(outputs.glob("runs/*/*/*/*"))
    text, _ = page(outputs, capsys)
    article = text.split(f'<article class="run" id="run-{run.name}"')[1].split("</article>")[0]
    words = shlex.split(Seen(article.split('<pre class="wrap">')[1].split("</pre>")[0]).text)
    assert run_id(compose_config(words[2:])) == run.name
    run.rename(run.with_name("000000000000"))
    text, _ = page(outputs, capsys)
    article = text.split('<article class="run" id="run-000000000000"')[1].split("</article>")[0]
    assert "kdx train" not in article
    assert "No command of kdx" in article
