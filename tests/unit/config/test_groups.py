"""Settings that suit a data set come with it, from `suited/DATASET/METHOD.yaml` and `DATASET/METHOD/TRAINER.yaml`."""

from pathlib import Path
from typing import Any

import pytest
from helpers.excerpt import only
from omegaconf import OmegaConf

from kdx.cli.help import train_help
from kdx.config.compose import compose_config, compose_sweep
from kdx.config.groups import conf_folder, load_groups
from kdx.errors import UserError
from kdx.reproduce.jobs import Request, jobs_of
from kdx.reproduce.tables import load_table
from kdx.runs.identity import run_id
from kdx.runs.reader import flat

FOLDER = conf_folder() / "suited"
FILES = sorted(FOLDER.rglob("*.yaml"))
VARIATIONAL = ("svd", "vbd", "kd-svd", "kd-vbd", "st-svd", "st-vbd", "st-bsr")


def brought(*path: str) -> dict[str, Any]:
    """What a file brings, by the key that a user would type; suited/DATASET/METHOD/TRAINER.yaml is for the trainer."""
    content = OmegaConf.load(Path(FOLDER, *path).with_suffix(".yaml"))
    return {f"{'method' if len(path) == 2 else 'trainer'}.{key}": value for key, value in content.items()}


def values(*words: str) -> dict[str, Any]:
    return flat(compose_config(words).model_dump(mode="json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(FOLDER).as_posix())
def test_every_file_changes_settings_that_are_there(file: Path):
    names = file.relative_to(FOLDER).with_suffix("").parts
    words = [f"{group}={name}" for group, name in zip(("dataset", "method", "trainer"), names, strict=False)]
    groups = load_groups()
    assert all(name in groups[group].choices for group, _, name in (word.partition("=") for word in words))
    here, elsewhere = values(*words), values("dataset=mnist", *words[1:])
    settings = brought(*names)
    assert settings
    assert {key: here[key] for key in settings} == settings
    # A misspelt key is one that MNIST does not have.
    assert all(elsewhere[key] != value for key, value in settings.items())


@pytest.mark.parametrize("method", VARIATIONAL)
def test_digits_brings_them_and_the_user_has_the_last_word(method: str):
    words = (f"method={method}", "dataset=digits")
    settings = brought("digits", method) | brought("digits", method, "default")
    assert {"method.lambda_V", "trainer.lr"} <= settings.keys()
    found = values(*words)
    assert {key: found[key] for key in settings} == settings
    assert values(*words[::-1]) == found
    for key in settings:
        assert values(*words, f"{key}=0.75") == values(f"{key}=0.75", *words) == {**found, key: 0.75}
    assert run_id(compose_config(words)) == run_id(
        compose_config([*words, *(f"{key}={value}" for key, value in settings.items())])
    )


def test_a_trainer_that_the_user_names_is_as_it_is_written():
    assert compose_config(["dataset=digits", "trainer=paper"]).trainer == compose_config(["trainer=paper"]).trainer
    assert compose_config(["dataset=digits", "trainer=paper"]).method == compose_config(["dataset=digits"]).method


def test_without_a_method_it_is_the_default_one():
    assert values("dataset=digits") == values("dataset=digits", "method=st-vbd")


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "svhn"])
@pytest.mark.parametrize(("method", "lambda_v"), [("svd", 1), ("kd-vbd", 9), ("st-vbd", 9), ("st-bsr", 9)])
def test_other_data_sets_keep_the_methods_defaults(dataset: str, method: str, lambda_v: float):
    assert compose_config([f"method={method}", f"dataset={dataset}"]).method["lambda_V"] == lambda_v


@pytest.mark.parametrize("method", sorted(name for name in load_groups()["method"].choices if "/" in name))
def test_what_a_paper_prints_is_the_same_on_every_data_set(method: str):
    here, printed = compose_config([f"method={method}", "dataset=digits"]), compose_config([f"method={method}"])
    assert (here.method, here.trainer) == (printed.method, printed.trainer)


def test_every_job_of_a_sweep_has_what_suits_its_data_set():
    jobs = compose_sweep(["method=kd,st-vbd,paper/st-vbd", "dataset=digits,mnist"])
    suited, default = values("dataset=digits"), values()
    found = [(job.config.method.get("lambda_V"), job.config.trainer.lr) for job in jobs]
    assert found == [
        *[(None, default["trainer.lr"])] * 2,
        *((config["method.lambda_V"], config["trainer.lr"]) for config in (suited, default)),
        *[(1, 1e-3)] * 2,
    ]
    typed = compose_sweep(["method=svd,st-vbd", "dataset=digits", "method.lambda_V=2,4"])
    assert [job.config.method["lambda_V"] for job in typed] == [2, 4, 2, 4]


def test_a_smoke_run_of_a_table_has_it():
    order = Request(rows="*", seeds=1, budget="smoke", overrides=(), train=False)
    (found,) = (job.config for job in jobs_of(only(load_table("vs/table2"), "S1-ST-VBD"), order))
    assert found.dataset.name == "digits"
    assert found.method == compose_config(["dataset=digits"]).method


def test_help_shows_it_and_it_is_no_group():
    suited = brought("digits", "st-vbd")["method.lambda_V"]
    for words, value in ((["dataset=digits"], suited), ([], 9)):
        (line,) = [line.split() for line in train_help(words).splitlines() if line.startswith("  method.lambda_V ")]
        assert line[:2] == ["method.lambda_V", str(value)]
    assert "suited" not in load_groups()
    assert "suited=" not in train_help([])
    with pytest.raises(UserError, match=r"^suited=digits/kd: unknown key; "):
        compose_config(["suited=digits/kd"])
