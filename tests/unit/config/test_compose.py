"""Configurations from overrides: what is accepted, and what is refused and how."""

import pytest

from kdx.config.compose import compose_config, compose_sweep
from kdx.config.groups import load_groups
from kdx.errors import UserError
from kdx.runs.identity import _identity


def test_defaults():
    config = compose_config([])
    assert (config.dataset.name, config.teacher.name, config.student.name) == (
        "mnist",
        "mlp-1200-1200",
        "lenet-300-100",
    )
    assert (config.method["name"], config.seed, config.force, config.outputs) == ("st-vbd", 0, False, "outputs")


@pytest.mark.parametrize(
    "name", ["dataset", "teacher", "student", "trainer", "method", "device", "teacher2", "teacher3"]
)
def test_every_choice_of_every_group_is_valid_and_described(name: str):
    group = load_groups()[name]
    assert group.default in group.choices
    for choice, found in group.choices.items():
        assert found.description, f"{name}/{choice}.yaml begins with a comment that describes it"
        # The student of chains exists with chains only; a further teacher must be another than the first.
        needed = {"refined": ["method=ikd"]}.get(choice, ["teacher.seed=1"] if name in ("teacher2", "teacher3") else [])
        compose_config([f"{name}={choice}", *needed])


def test_what_choices_share_is_no_choice():
    groups = load_groups()
    assert list(groups) == [
        *("teacher", "student", "dataset", "trainer", "teacher.trainer", "method", "device", "teacher2", "teacher3")
    ]
    assert not [choice for group in groups.values() for choice in group.choices if choice.startswith("_")]


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
def test_a_data_set_chooses_teacher_and_student_and_the_user_has_the_last_word(dataset: str):
    def names(*words: str) -> tuple[str, str]:
        config = compose_config(words)
        assert config.dataset.name == dataset
        return config.teacher.name, config.student.name

    chosen = f"dataset={dataset}"
    assert names(chosen) == ("resnet56-v2", "lenet5-caffe")
    assert names(chosen, "student=mlp-500-50") == names("student=mlp-500-50", chosen) == ("resnet56-v2", "mlp-500-50")
    assert names("teacher=mlp-1200-1200", chosen, "method=paper/kd") == ("mlp-1200-1200", "lenet5-caffe")


def test_a_sweep_over_data_sets_gives_each_its_networks():
    found = [job.config.student.name for job in compose_sweep(["dataset=mnist,cifar10,digits,svhn"])]
    assert found == ["lenet-300-100", "lenet5-caffe", "lenet-300-100", "lenet5-caffe"]


def test_outputs_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDX_OUTPUTS", "/elsewhere")
    assert compose_config([]).outputs == "/elsewhere"
    assert compose_config(["outputs=here"]).outputs == "here"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epochs=3.5", "trainer.epochs: 3.5 is not allowed; allowed: a whole number >= 1"),
        ("trainer.epochs=-1", "trainer.epochs: -1 is not allowed; allowed: a whole number >= 1"),
        ("trainer.lr=nan", "trainer.lr: nan is not allowed; allowed: a finite number > 0"),
        ("trainer.lr='1'", "trainer.lr: '1' is not allowed; allowed: a finite number > 0"),
        ("trainer.hold=2", "trainer.hold: 2 is not allowed; allowed: a finite number >= 0 and <= 1"),
        ("trainer.schedule=cosine", "trainer.schedule: 'cosine' is not allowed; allowed: one of hold, one-cycle"),
        (
            "trainer.optimizer=adamw",
            "trainer.optimizer: 'adamw' is not allowed; did you mean 'adam'? allowed: one of adam,",
        ),
        ("trainer.momentum=1", "trainer.momentum: 1 is not allowed; allowed: a finite number >= 0 and < 1"),
        ("trainer.average=1", "trainer.average: 1 is not allowed; allowed: a finite number > 0 and < 1 or null"),
        (
            "trainer.label_smoothing=1",
            "trainer.label_smoothing: 1 is not allowed; allowed: a finite number >= 0 and < 1",
        ),
        ("trainer=none", "trainer: 'none' is not known; allowed: default, paper, short, short-both"),
        ("teacher.trainer=shrt", "teacher.trainer: 'shrt' is not known; did you mean 'short'? allowed: default, none,"),
        ("seed=abc", "seed: 'abc' is not allowed; allowed: a whole number >= 0"),
        ("~seed", "~seed: keys cannot be added, removed or moved"),
        ("+new.key=1", "+new.key=1: keys cannot be added, removed or moved; allowed: KEY=VALUE with a key of"),
        ("seed=true", "seed: true is not allowed; allowed: a whole number >= 0"),
        ("seed=null", "seed: null is not allowed; allowed: a whole number >= 0"),
        (
            "seed=9223372036854775808",
            "seed: 9223372036854775808 is not allowed; allowed: a whole number >= 0 and <= 922",
        ),
        ("seed=-1", "seed: -1 is not allowed; allowed: a whole number >= 0 and <= 9223372036854775807"),
        (
            "teacher.seed=99999999999999999999999",
            "teacher.seed: 99999999999999999999999 is not allowed; allowed: a whole",
        ),
        ("device.latency_seconds=1e30", "device.latency_seconds: 1e+30 is not allowed; allowed: a finite number >= 0"),
        ("force=1", "force: 1 is not allowed; allowed: true or false"),
        ("student.hidden=[300,0]", "student.hidden[1]: 0 is not allowed; allowed: a whole number >= 1"),
        ("student.hidden=300", "student.hidden: 300 is not allowed; allowed: a list, each element a whole number >= 1"),
        ("student.name=a/b", r"student.name: 'a/b' is not allowed; allowed: a text that matches ^\w[\w.-]*$"),
        ("device.threads=0", "device.threads: 0 is not allowed; allowed: a whole number >= 1 or null"),
        ("device.compile=maybe", "device.compile: 'maybe' is not allowed; allowed: auto or true or false"),
        ("device.kind=cuad", "device.kind: 'cuad' is not allowed; did you mean 'cuda'? allowed: one of auto, cpu,"),
        ("student.channels=[3]", "student: family mlp has no channels; channels is [3]"),
        ("method.name=a/b", "method: method.name must be a text that can name a folder; it is 'a/b'"),
        ("dataset.mirror=copies", "dataset.mirror: 'copies' is not allowed; allowed: none"),
        ("dataset.shift=28", "dataset.shift: 28 is not allowed; allowed: 0 to 27, since images have 28 pixels"),
        ("dataset.shift=-1", "dataset.shift: -1 is not allowed; allowed: a whole number >= 0"),
        ("dataset.shift=0.5", "dataset.shift: 0.5 is not allowed; allowed: a whole number >= 0"),
        ("dataset.train_size=0", "dataset.train_size: 0 is not allowed; allowed: a whole number >= 1 or null"),
        ("dataset.name=minst", "dataset.name: 'minst' is not known; did you mean 'mnist'? allowed: cifar10, digits,"),
        (
            "dataset.preprocessing=mean",
            "dataset.preprocessing: 'mean' is not allowed; allowed: one of scale, symmetric",
        ),
        ("dataset.extra=false", "dataset.extra=false: unknown key here; dataset=svhn has it; allowed: dataset.name"),
        ("lr=1", "lr=1: unknown key; did you mean 'trainer.lr'? allowed: teacher, student,"),
        ("part=kd", "part=kd: unknown key"),
        ("method/part=kd", "method/part=kd: 'method/part' is not known"),
        ("trainer={lr:1}", "trainer: '{lr:1}' is not known; allowed: default"),
        ("method@student=kd", "method@student=kd: keys cannot be added, removed or moved"),
        ("++seed=1", "++seed=1: keys cannot be added, removed or moved"),
        ("seed=${nowhere}", "seed: Interpolation key 'nowhere' not found"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib: Hydra's own settings act on sweeps only; add -m"),
        ("hydra.verbose=true", "hydra.verbose=true: the log of a run is kdx.log in its folder; allowed: leave it out"),
    ],
)
def test_refused(override: str, message: str):
    with pytest.raises(UserError) as caught:
        compose_config([override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seed=1 seed=2", "seed: '2' is a second value beside '1'; allowed: one"),
        ("method=kd method.T=2 method=svd", "method: 'svd' is a second value beside 'kd'; allowed: one"),
        ("trainer.lr=1e-3 trainer.lr=1e-3", "trainer.lr: '1e-3' is a second value beside '1e-3'; allowed: one"),
        ("seed=0,1 seed=2", "seed: '2' is a second value beside '0,1'; allowed: one"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_values(words: str, message: str):
    with pytest.raises(UserError) as caught:
        compose_sweep(words.split())
    assert str(caught.value) == message
    if "," not in words:
        with pytest.raises(UserError) as caught:
            compose_config(words.split())
        assert str(caught.value) == message


def test_a_group_and_one_of_its_keys_are_two_keys():
    assert compose_config(["method=kd", "method.T=7", "device=cpu", "device.threads=1"]).method["T"] == 7


def test_keys_of_other_methods_are_told():
    with pytest.raises(UserError, match=r"method\.lambda_V=2: unknown key here; method=.*st-vbd.* has it; allowed: "):
        compose_config(["method=vanilla", "method.lambda_V=2"])


def test_fields_that_do_not_fit_together():
    with pytest.raises(UserError, match=r"^device\.precision: 'tf32' is not allowed with device\.kind=cpu"):
        compose_config(["device=cpu", "device.precision=tf32"])
    with pytest.raises(UserError, match=r"^device\.graph: true is not allowed with device\.kind=cpu, only with cuda;"):
        compose_config(["device=cpu", "device.graph=true"])
    with pytest.raises(UserError, match=r"^device\.graph: 'sometimes' is not allowed; allowed: "):
        compose_config(["device.graph=sometimes"])
    with pytest.raises(
        UserError,
        match=r"^teacher\.channels: \[1, 2, 3, 4\] is not allowed with dataset=cifar10; it needs images of at least",
    ):
        compose_config(["dataset=cifar10", "teacher=lenet5-caffe", "teacher.channels=[1,2,3,4]"])
    with pytest.raises(UserError, match=r"^dataset\.mirror: 'twice' .*one of none, copies, random"):
        compose_config(["dataset=svhn", "dataset.mirror=twice"])
    with pytest.raises(
        UserError,
        match=r"^student\.channels: \[1, 2, 3\] is not allowed with dataset=digits; it needs images of at least 36x36",
    ):
        compose_config(["dataset=digits", "student=lenet5-caffe", "student.channels=[1,2,3]"])
    with pytest.raises(
        UserError, match=r"^teacher\.blocks: .* it needs images of at least 29x29 pixels, these have 28x"
    ):
        compose_config(["dataset=digits", "teacher=densenet121", "teacher.pad_to=28"])


def test_every_family_has_its_own_fields_and_checks():
    with pytest.raises(UserError, match=r"^student\.family: 'resmet' is not known; did you mean 'resnet'\? allowed: "):
        compose_config(["student=resnet152", "student.family=resmet"])
    with pytest.raises(UserError, match=r"^student: blocks and channels need one number per stage"):
        compose_config(["student=resnet152", "student.blocks=[1,2]"])
    with pytest.raises(UserError, match=r"^teacher\.blocks\[2\]: 0 is not allowed; allowed: a whole number >= 1$"):
        compose_config(["teacher=resnet56-v2", "teacher.blocks=[1,2,0]"])
    with pytest.raises(UserError, match=r"^student\.layers\[1\]: 'MP9' is not allowed; allowed: a text that matches"):
        compose_config(["student=noisy-cifar", "student.layers=[C5@8,MP9]"])
    with pytest.raises(UserError, match=r"^student: head average has no hidden layers"):
        compose_config(["student=nin", "student.hidden=[10]"])
    with pytest.raises(UserError, match=r"^student\.stem: no value is given"):
        compose_config(["student=mlp-500-50", "student.family=resnet"])


def test_the_ids_of_the_first_networks_stay_what_they_were():
    """Ids are hashes of these fields: one more for all families would orphan every run."""
    identity = _identity(compose_config(["student=lenet5-caffe", "teacher=mlp-1200-1200"]))
    assert identity["student"] == {
        "name": "lenet5-caffe", "family": "lenet", "channels": [20, 50], "hidden": [500],
    }  # fmt: skip
    assert set(identity["teacher"]) == {
        "name", "family", "channels", "hidden", "checkpoint", "seed", "dropout", "input_dropout", "trainer",
    }  # fmt: skip


def test_sweeps_expand_in_order():
    configs = [job.config for job in compose_sweep(["method=vanilla,kd", "seed=range(0,3)", "trainer.epochs=2"])]
    found = [(config.method["name"], config.seed, config.trainer.epochs) for config in configs]
    assert found == [(method, seed, 2) for method in ("vanilla", "kd") for seed in range(3)]
    assert len(compose_sweep([])) == 1


def test_every_job_of_a_sweep_is_validated():
    with pytest.raises(UserError, match=r"^seed: -1 is not allowed"):
        compose_sweep(["seed=0,1,-1"])
    with pytest.raises(UserError, match=r"^method\.T=2: unknown key here"):
        compose_sweep(["method=kd,vanilla", "method.T=2"])
    with pytest.raises(UserError, match=r"^method: 'kdx' is not known; did you mean 'kd'\?"):
        compose_sweep(["method=kd,kdx"])


def test_a_trainer_is_chosen_for_student_teacher_or_both():
    usual, short = (compose_config([f"trainer={choice}"]).trainer for choice in ("default", "short"))
    own = compose_config([]).teacher.trainer
    assert (short.schedule, short.epochs) == ("one-cycle", 30)
    for words, expected in (
        ((), (usual, own)),
        (("trainer=short",), (short, own)),
        (("teacher.trainer=short",), (usual, short)),
        (("trainer=short", "teacher.trainer=short"), (short, short)),
        (("trainer=short-both",), (short, short)),
        (("trainer=short-both", "teacher.trainer=default"), (short, usual)),
        # What is typed wins, and so does the data set's choice of a teacher, whose own recipe does not.
        (("dataset=cifar10", "trainer=short-both"), (short, short)),
    ):
        config = compose_config(words)
        assert (config.trainer, config.teacher.trainer) == expected, words
    typed = compose_config(["trainer=short-both", "teacher=vgg19", "teacher.trainer.lr=1e-4", "trainer.epochs=20"])
    assert typed.teacher.trainer == short.model_copy(update={"lr": 1e-4})
    assert typed.trainer == short.model_copy(update={"epochs": 20})
    assert [job.config.teacher.trainer for job in compose_sweep(["teacher.trainer=none,short", "seed=0"])] == [
        own,
        short,
    ]


def test_every_trainer_of_before_has_no_option_of_now():
    """So that what they trained is the same experiment as ever."""
    teachers = [
        compose_config([f"teacher={name}"]).teacher.trainer for name in ("mlp-1200-1200", "nin", "resnet56-v2", "vgg19")
    ]
    for trainer in (*(compose_config([f"trainer={name}"]).trainer for name in ("default", "paper")), *teachers):
        fields = type(trainer).model_fields.items()
        later = {name: field.default for name, field in fields if not field.is_required()}
        assert len(later) == 7
        assert {name: getattr(trainer, name) for name in later} == later
