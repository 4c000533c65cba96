"""Which of Hydra's own settings a user may type, and what is told of the others: the key, and what takes its place."""

import random
from pathlib import Path
from typing import Any, cast

import pytest
from helpers.typed import flat, misspelt
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from kdx.cli.main import main
from kdx.config.compose import CONFIG_NAME, HYDRA_VERSION, compose_config, compose_sweep, launcher_settings
from kdx.config.groups import conf_folder
from kdx.errors import UserError
from kdx.sweep.resources import divide_cores

SWEEPS = "outputs/sweeps/<name>"
FOLDER = "outputs=FOLDER or the environment variable KDX_OUTPUTS"

# Hydra's own settings, which a sweep takes too; all are refused with and without -m.
HYDRAS = (
    *("+hydra.sweeper.params.seed='0,1'", "hydra.sweeper.params.seed=0,1", "++hydra.sweeper.params={seed:'0,1'}"),
    *("hydra.sweeper.max_batch_size=-1", "hydra/sweeper=optuna", "hydra/sweeper=basic", "~hydra.sweeper.params"),
    *("hydra.run.dir=x", "++hydra.run.dir=x", "hydra.run={dir:x}", "hydra.sweep.dir=x", "hydra.sweep.subdir=abc"),
    *("+hydra.sweep.subdir=abc", "~hydra.sweep", "~hydra.sweep.subdir", "hydra.job.chdir=true", "++hydra.job.chdir=1"),
    *("hydra.job.num=7", "hydra.job.env_set.KDX_OUTPUTS=x", "+hydra.job.env_set.KDX_OUTPUTS=x", "hydra.job.name=x"),
    *("hydra.output_subdir=null", "hydra.mode=RUN", "hydra.mode=MULTIRUN", "hydra.verbose=true", "hydra.verbose=kdx"),
    *("hydra/job_logging=default", "hydra/hydra_logging=none", "hydra/output=x", "hydra.searchpath=[x]", "hydra/=x"),
    *("hydra=none", "+hydra=x", "~hydra", "hydra.=1", "hydra..run=1", "hydra@x=y", "hydra={}", "hydra.runtime.cwd=/"),
    *("+hydra.callbacks.x._target_=os.system", "hydra.defaults=[]", "hydra.overrides.task=[seed=3]", "hydra.job=3"),
    *("hydra/launcher=", "hydra/launcher=null", "hydra/launcher=[joblib]", "hydra/launcher=joblib,basic", "hydra/x=y"),
    *("hydra/launcher=condor", "+hydra/launcher=joblib", "~hydra/launcher", "hydra/launcher@x=joblib", "hydra.x=1"),
    *("hydra.launcher=joblib", "hydra.launcher={n_jobs:1}", "hydra.launcher._target_=os.system", "~hydra.launcher"),
    *("hydra.launcher.n_jobs=2", "+hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs=1,2", "hydra.launcher.=1"),
)
JOBLIBS = (
    *("n_jobs=abc", "n_jobs=0", "n_jobs=1.5", "n_jobs=null", "n_jobs.x=1", "njobs=2", "n_jobs=1,2", "n_jobs=[1]"),
    *("n_jobs=${oc.env:NOTHING}", "n_jobs=${nothing}", "temp_folder=${oc.env:NOTHING}", "verbose=very", "x=y"),
)


def refused(word: str, *, sweep: bool) -> str:
    """What is told of this word."""
    words = ["seed=0,1", word] if sweep else [word]
    with pytest.raises(UserError) as caught:
        both(words) if sweep else compose_config(words)
    message = str(caught.value)
    assert "\n" not in message
    assert "allowed: " in message or (not sweep and message.endswith("; add -m or leave it out")), message
    return message


def both(words: list[str]) -> None:
    compose_sweep(words)
    launcher_settings(words)


@pytest.mark.parametrize("sweep", [True, False])
@pytest.mark.parametrize("word", HYDRAS)
def test_what_would_break_the_contract_of_a_run_is_refused_in_every_form(word: str, sweep: bool):
    assert "hydra" in refused(word, sweep=sweep)


def test_so_is_every_key_of_hydras_but_the_launchers():
    """In any form, misspelt or not; of the values a few, as none is looked at."""
    chance = random.Random(0)
    keys = [key for key in hydra_keys() if not key.startswith("hydra.launcher.")]
    assert {"hydra.run.dir", "hydra.sweep.subdir", "hydra.job.chdir", "hydra.mode", "hydra.verbose"} <= {*keys}
    for key in keys:
        misspelt_key = f"hydra.{misspelt(chance, key.removeprefix('hydra.'))}"
        others = (f"{key}=null", f"{key}={{a:1}}", f"{key}=1,2", f"{key}=[]", f"{key}=", f"{misspelt_key}=x")
        for word in (f"{key}=x", f"+{key}=x", f"++{key}=x", f"~{key}", chance.choice(others)):
            for sweep in (True, False):
                assert "hydra" in refused(word, sweep=sweep)
                assert misspelt_key in word or key in refused(word, sweep=sweep)


def hydra_keys() -> list[str]:
    """Every setting of Hydra's that has a name here, as far as it is configured."""
    with initialize_config_dir(config_dir=str(conf_folder()), version_base=HYDRA_VERSION):
        own = compose(CONFIG_NAME, return_hydra_config=True).hydra
    content = cast(dict[str, Any], OmegaConf.to_container(own, resolve=False))
    return [key for key, _ in flat(content, "hydra.")]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("+hydra.sweeper.params.seed='0,1'", "the values of a sweep are typed with their key; allowed: seed=0,1"),
        ("hydra.sweeper.params.trainer.lr=1e-3", "allowed: trainer.lr=1e-3"),
        ("hydra.sweep.subdir=abc", f"the folder of a sweep is {SWEEPS}; allowed: sweep.name=NAME, {FOLDER}"),
        ("hydra.sweep.dir=x", f"the folder of a sweep is {SWEEPS}; allowed: sweep.name=NAME, {FOLDER}"),
        ("hydra.run.dir=x", f"the folder of a run follows from its settings; allowed: {FOLDER}"),
        ("hydra.job.chdir=true", f"every job stays in the folder where kdx was started; allowed: {FOLDER}"),
        ("hydra.output_subdir=x", "the folder of a run has its config.yaml; allowed: leave it out"),
        ("hydra.mode=MULTIRUN", "kdx train is one run and kdx train -m a sweep; allowed: -m, or leave it out"),
        ("hydra/sweeper=optuna", "all combinations of the values that are typed; allowed: KEY=A,B"),
        ("hydra.job.name=x", "allowed: hydra/launcher=NAME and hydra.launcher.KEY=VALUE, with -m"),
    ],
)  # fmt: skip
def test_it_is_told_what_takes_its_place(word: str, told: str):
    for sweep in (True, False):
        assert refused(word, sweep=sweep).endswith(told)


@pytest.mark.parametrize(
    ("launcher", "setting", "told"),
    [
        *(("joblib", setting, "") for setting in JOBLIBS),
        ("fused", "max_models=0", "max_models: 0 is not allowed; allowed: a whole number >= 1"),
        ("fused", "way=lop", "way: 'lop' is not allowed; did you mean 'loop'? allowed: one of auto"),
    ],
)
def test_a_wrong_setting_of_a_launcher_is_told_before_anything_runs(launcher: str, setting: str, told: str):
    words = ["seed=0,1", f"hydra/launcher={launcher}", f"hydra.launcher.{setting}"]
    with pytest.raises(UserError, match=r"^hydra\.launcher.*allowed: ") as caught:
        divide_cores(words, compose_sweep(words))
    assert "\n" not in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hydra/launcher=joblib hydra.launcher.n_jobs=2", {"n_jobs": 2}),
        ("hydra/launcher=joblib ++hydra.launcher.n_jobs=2 +hydra.launcher.timeout=3", {"n_jobs": 2, "timeout": 3.0}),
        ("hydra.launcher.n_jobs=${oc.env:JOBS} hydra/launcher=joblib", {"n_jobs": 5}),
        ("hydra.launcher.temp_folder=${hydra.job.num} hydra/launcher=joblib", {"temp_folder": "${hydra.job.num}"}),
        ("hydra/launcher=fused hydra.launcher.way=loop", {"max_models": None, "way": "loop"}),
        ("hydra/launcher=basic", {}),
    ],
)
def test_the_users_settings_of_the_launcher(words: str, expected: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JOBS", "5")
    settings = launcher_settings(["seed=0,1", *words.split()])
    assert settings | expected == settings
    assert [job.overrides for job in compose_sweep(["seed=0,1", *words.split()])] == [["seed=0"], ["seed=1"]]


def test_the_jobs_are_those_that_hydras_sweeper_makes():
    words = ["hydra/launcher=joblib", "method=vanilla,kd", "seed=range(0,3)", "trainer.lr=1e-3", "outputs='a b'"]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), max_batch_size=None)
    assert [job.overrides for job in compose_sweep(words)] == [job[1:] for job in jobs]


@pytest.mark.parametrize("words", [[], ["hydra/launcher=joblib"], ["sweep.name=x", "device.threads=1"]])
def test_a_sweep_that_nothing_is_said_of_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """It would be one run of the default method, hours long."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *words]) == 2
    told = "nothing says what the runs of the sweep are; allowed: KEY=A,B such as seed=0,1,2 (one run: without -m)"
    assert capsys.readouterr().err == f"kdx: -m: {told}\n"
    assert not Path("outputs").exists()
