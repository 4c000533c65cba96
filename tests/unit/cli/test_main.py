"""The command line around a stand-in for the experiment: exit codes, messages, sweeps."""

import errno
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kdx.cli.main import main
from kdx.config.schema import Config
from kdx.errors import Interrupted, UserError
from kdx.runs.folder import run_folder
from kdx.runs.reader import Unfinished
from kdx.storage.files import write_json

FAILURES = {
    1: RuntimeError("it broke\nbadly"),
    2: UserError("dataset.root: '/x' has no files; allowed: a folder with them"),
    3: Interrupted("after epoch 3"),
    4: OSError(errno.ENOSPC, "No space left on device", "outputs/student.safetensors"),
    5: KeyboardInterrupt(),
}


def finished(word: str, outputs: Path) -> Path:
    if word.startswith("started"):
        raise Unfinished(f"run: {word} is not a finished run, it has no metrics.json")
    return outputs / word


@pytest.fixture(autouse=True)
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`kdx.experiment.run` and the tables replaced: a seed of FAILURES fails, any other finishes."""

    def run(config: Config) -> Path:
        folder = run_folder(config)
        folder.clear()
        if config.seed in FAILURES:
            raise FAILURES[config.seed]
        return folder.path

    names = ("kdx.experiment", "kdx.cli.run_tables", "kdx.cli.comparison")
    story, table, comparison = map(ModuleType, names)
    story.run = run  # type: ignore[attr-defined]
    table.print_run = lambda run: print("table")  # type: ignore[attr-defined]
    comparison.print_comparison = lambda runs: print("comparison of", len(runs))  # type: ignore[attr-defined]
    for name, module in zip(names, (story, table, comparison), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("kdx.runs.reader.finished_run", finished)
    monkeypatch.setattr("kdx.analysis.summary.groups_of", lambda runs: [])
    monkeypatch.delenv("KDX_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_run_prints_its_table_and_its_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "method=kd"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "table"
    assert Path(last).is_dir()
    assert last.startswith("outputs/runs/mnist/lenet-300-100/kd/")


def test_of_several_runs_those_that_are_finished_are_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["table", "one", "started", "two"]) == 0
    assert capsys.readouterr() == (
        "comparison of 2\n",
        "kdx: run: started is not a finished run, it has no metrics.json; it is left out\n",
    )
    assert main(["table", "one", "started"]) == 0
    assert capsys.readouterr().out == "table\n"
    for words in (["started"], ["started", "started2"]):
        assert main(["table", *words]) == 2
        assert capsys.readouterr().err == "kdx: run: started is not a finished run, it has no metrics.json\n"


def test_a_failed_run_keeps_its_traceback_in_the_log(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "seed=1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("kdx: RuntimeError: it broke badly; the traceback is in outputs/runs/")
    assert "Traceback" in Path(err.split()[-1]).read_text()


@pytest.mark.parametrize(
    ("seed", "code", "line"),
    [
        (2, 2, "kdx: dataset.root: '/x' has no files; allowed: a folder with them\n"),
        (3, 130, "kdx: interrupted after epoch 3\n"),
        (4, 1, "kdx: outputs/student.safetensors: No space left on device\n"),
        (5, 130, "kdx: interrupted\n"),
    ],
)
def test_exit_codes(seed: int, code: int, line: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", f"seed={seed}"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_failure_without_a_run_folder_shows_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken(config: Config) -> Path:
        raise RuntimeError("early")

    monkeypatch.setattr(sys.modules["kdx.experiment"], "run", broken)
    assert main(["train"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("kdx: RuntimeError: early\n")


def test_a_mistake_in_the_method_is_told_before_the_run(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "method=kd", "method.T=-1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("kdx: method.T: -1 is not allowed; ")
    assert err.count("\n") == 1


def test_a_sweep_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "method=kd,vanilla", "seed=0,1"]) == 1
    out, err = capsys.readouterr()
    first, last = out.splitlines()
    assert first == "comparison of 2"
    assert err.count("job 1 (method=kd seed=1) failed: RuntimeError: it broke badly") == 1
    assert err.count("job 3 (method=vanilla seed=1) failed: RuntimeError: it broke badly") == 1
    records = [json.loads(path.read_bytes()) for path in sorted(Path(last).glob("*/job.json"))]
    assert [(record["number"], bool(record["run"]), bool(record["error"])) for record in records] == [
        (0, True, False),
        (1, False, True),
        (2, True, False),
        (3, False, True),
    ]


def test_a_sweep_that_succeeds(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--multirun", "seed=0,7", "sweep.name=swept"]) == 0
    assert capsys.readouterr().out == "comparison of 2\noutputs/sweeps/swept\n"


def test_a_sweep_in_a_used_folder_counts_its_own_jobs(capsys: pytest.CaptureFixture[str]):
    main(["train", "-m", "seed=0,7,8", "sweep.name=swept"])
    main(["train", "-m", "seed=0,7", "sweep.name=swept"])
    assert capsys.readouterr().out.splitlines()[-2] == "comparison of 2"


def test_the_same_jobs_have_the_same_folder(capsys: pytest.CaptureFixture[str]):
    for words in (
        ["seed=0,7", "trainer.lr=0.01"],
        ["trainer.lr=1e-2", "seed=7,0", "device.threads=1", "force=true", "sweep.fail_fast=true"],
        ["seed=0,7,8", "trainer.lr=0.01"],
    ):
        main(["train", "-m", *words])
    first, same, other = capsys.readouterr().out.splitlines()[1::2]
    assert first == same != other


def test_a_job_that_leaves_no_record_has_failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def unless_it_is_the_second(path: Path, content: dict | list) -> None:
        # The list is that of all jobs, which the sweep itself writes.
        if isinstance(content, dict) and content["number"] == 1:
            raise MemoryError("killed")
        write_json(path, content)

    monkeypatch.setattr("kdx.sweep.multirun.write_json", unless_it_is_the_second)
    assert main(["train", "-m", "seed=0,7,8"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("comparison of 2\n")
    assert "kdx: job 1 (seed=7) failed: it left no record: MemoryError: killed; the traceback is in" in err


def test_a_shuffled_job_that_fails_is_named_by_its_own_words(capsys: pytest.CaptureFixture[str]):
    """They are shuffled once: the order in which the jobs are checked is that in which they run."""
    seeds = ",".join(map(str, [0, *range(10, 40), next(iter(FAILURES))]))
    assert main(["train", "-m", f"seed=shuffle({seeds})"]) == 1
    err = capsys.readouterr().err
    number = err.partition(f": seed={next(iter(FAILURES))}\n")[0].rpartition("job ")[2]
    assert f"kdx: job {number} (seed={next(iter(FAILURES))}) failed: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep.name=a/b",), "sweep.name: 'a/b' is not allowed; "),
        (("sweep.name=a,b",), "sweep.name: 'a' and 'b' in one sweep; allowed: one value for all jobs"),
        (("outputs=a,b",), "outputs: 'a' and 'b' in one sweep; allowed: one value for all jobs"),
        (("hydra.sweep.dir=x",), "hydra.sweep.dir=x: the folder of a sweep is outputs/sweeps/<name>; "),
    ],
)
def test_what_holds_for_a_whole_sweep(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", *words]) == 2
    assert capsys.readouterr().err.startswith(f"kdx: {message}")


def test_a_run_is_no_sweep(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "sweep.fail_fast=true"]) == 2
    assert capsys.readouterr().err == "kdx: sweep.fail_fast=true: this acts on sweeps only; add -m or leave it out\n"


def test_an_interruption_ends_the_sweep(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "seed=0,3,7"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "kdx: interrupted after epoch 3"
    assert "job 2" not in err


def test_nothing_runs_when_one_job_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "seed=0,x"]) == 2
    assert main(["train", "-m", "method=kd", "method.T=1,-1"]) == 2
    assert main(["train", "-m", "hydra/launcher=joblb"]) == 2
    assert not (tmp_path / "outputs").exists()
    assert capsys.readouterr().err.count("\n") == 3


def test_tables_of_one_and_of_several(capsys: pytest.CaptureFixture[str]):
    assert main(["table", "a"]) == 0
    assert main(["table", "a", "b"]) == 0
    assert capsys.readouterr().out == "table\ncomparison of 2\n"
