"""The ids of runs, teachers and sweeps: what they see, what they ignore, and that old ones stay what they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.packages import install, sample_files

from kdx.config.compose import compose_config, compose_sweep
from kdx.config.schema import Config
from kdx.data import _content_sha256
from kdx.errors import UserError
from kdx.runs.identity import changes, run_id, sweep_id, teacher_id

COMMITTED = sorted((ROOT / "outputs" / "paper").glob("*/*/provenance.json"))

BASE = ("method=kd", "dataset=digits")


def but(override: str) -> list[str]:
    """BASE with this override, in the place of one of the same key."""
    key = override.partition("=")[0]
    return [*(word for word in BASE if word.partition("=")[0] != key), override]


@pytest.mark.parametrize(
    "override",
    [
        "device=cpu",
        "device.precision=fp32",
        "device.compile=true",
        "device.graph=false",
        "device.threads=7",
        "outputs=elsewhere",
        "force=true",
        "dataset.root=/data",
        "dataset.download=true",
        "dataset.shift=0",
        "trainer.checkpoint_seconds=1",
        "teacher.trainer.checkpoint_seconds=1",
        "method.T=${sum}",
    ],
)
def test_the_run_id_ignores(override: str):
    config = compose_config(BASE)
    # The same number, typed as the other type.
    override = override.replace("${sum}", str(_other_type(config.method["T"])))
    assert run_id(compose_config([*BASE, override])) == run_id(config)


def test_whole_numbers_and_floats_are_one_run():
    assert run_id(compose_config([*BASE, "trainer.lr=1"])) == run_id(compose_config([*BASE, "trainer.lr=1.0"]))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "trainer.lr=0.5",
        "trainer.epochs=7",
        "dataset=mnist",
        "dataset.validation=7",
        "dataset.split_seed=7",
        "dataset.train_size=7",
        "dataset.shift=1",
        "student=mlp-500-50",
        "student.hidden=[7]",
        "teacher.seed=7",
        "teacher.dropout=0.7",
        "teacher.trainer.epochs=7",
        "method=vanilla",
        "method.T=7.5",
        "device.precision=bf16",
        "trainer.schedule=one-cycle",
        "trainer.optimizer=sgd",
        "trainer.weight_decay=1e-4",
        "trainer.label_smoothing=0.1",
        "trainer.average=0.999",
        "teacher.trainer.label_smoothing=0.1",
        "method.standardize=true",
        "method.decoupled=true",
        "method.beta=2",
    ],
)
def test_the_run_id_sees(override: str):
    assert run_id(compose_config(but(override))) != run_id(compose_config(BASE))


@pytest.mark.parametrize("method", ["kd", "st-vbd"])
def test_a_run_keeps_its_id_at_the_values_that_later_keys_stand_for(method: str):
    """As `LATER` and the defaults of fields have them: as if they had never been typed, nor been there."""
    words = [f"method={method}", "dataset=digits"]
    config = compose_config(words)
    hint = {"standardize": False, "decoupled": False, "beta": 8}
    assert {key: config.method[key] for key in hint} == hint
    without = {key: value for key, value in config.method.items() if key not in hint}
    before = config.model_dump() | {"method": without}
    for trainer in (before["trainer"], before["teacher"]["trainer"]):
        for key in ("schedule", "peak", "optimizer", "momentum", "weight_decay", "label_smoothing", "average"):
            del trainer[key]
    old = Config.model_validate(before)
    assert (run_id(old), teacher_id(old)) == (run_id(config), teacher_id(config))
    typed = compose_config([*words, "method.beta=8.0", "trainer.weight_decay=0", "trainer.momentum=0.9"])
    assert run_id(typed) == run_id(config)


def test_the_run_id_is_short_and_stable():
    first, again = run_id(compose_config(BASE)), run_id(compose_config(reversed_of(BASE)))
    assert first == again
    assert len(first) == 12
    assert set(first) <= set("0123456789abcdef")


def test_the_teacher_id_depends_on_teacher_and_data_only():
    base = teacher_id(compose_config(BASE))
    other = ["dataset=digits", "seed=1", "method=vanilla", "student=mlp-500-50", "trainer.lr=1"]
    assert teacher_id(compose_config(other)) == base
    assert teacher_id(compose_config([*BASE, "dataset.root=/data", "teacher.trainer.checkpoint_seconds=1"])) == base
    for override in ("teacher.seed=1", "dataset.validation=7", "dataset.shift=1", "teacher.trainer.lr=1"):
        assert teacher_id(compose_config([*BASE, override])) != base


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_checkpoint_counts_by_content(tmp_path: Path, role: str):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for file, content in zip(files, (b"same", b"same", b"other"), strict=True):
        file.write_bytes(content)
    ids = [run_id(compose_config([*BASE, f"{role}.checkpoint={file}"])) for file in files]
    assert ids[0] == ids[1]
    assert len({run_id(compose_config(BASE)), *ids}) == 3


def test_a_checkpoint_that_is_written_again_counts_anew(tmp_path: Path):
    file, ids = tmp_path / "weights.safetensors", []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        ids.append(run_id(compose_config([*BASE, f"student.checkpoint={file}"])))
    assert ids[0] == ids[2] != ids[1]


def test_a_students_checkpoint_leaves_the_teacher_alone(tmp_path: Path):
    file = tmp_path / "student.safetensors"
    file.write_bytes(b"any")
    config = compose_config([*BASE, f"student.checkpoint={file}"])
    assert config.teacher.checkpoint is None
    assert teacher_id(config) == teacher_id(compose_config(BASE))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_an_absent_checkpoint_is_the_users_mistake(role: str):
    with pytest.raises(UserError, match=rf"^{role}\.checkpoint: 'nowhere' is not a file"):
        run_id(compose_config([f"{role}.checkpoint=nowhere"]))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: f"{file.parts[-3]}/{file.parts[-2]}")
def test_committed_runs_keep_their_ids(file: Path):
    told = [run for run in json.loads(file.read_text())["runs"] if run["run"]]
    configs = [Config.model_validate(run["configuration"] | {"outputs": "outputs", "force": False}) for run in told]
    ids = [(teacher_id if run["of"] == "teacher" else run_id)(each) for run, each in zip(told, configs, strict=True)]
    assert ids == [run["run"] for run in told]


def test_precision_belongs_to_run_teacher_and_sweep():
    configs = [compose_config([*BASE, f"device.precision={precision}"]) for precision in ("fp32", "bf16")]
    assert len({run_id(config) for config in configs}) == 2
    assert len({teacher_id(config) for config in configs}) == 2
    assert len({sweep_id([config]) for config in configs}) == 2
    # Float32 is what ids without a word of it mean.
    assert teacher_id(configs[0]) == teacher_id(compose_config(BASE))
    assert run_id(compose_config([*BASE, "device.precision=tf32"])) not in map(run_id, configs)


def test_a_table_is_marked_by_its_precision_unless_it_is_the_usual_one():
    words = ("device.precision=bf16", "device.threads=1", "dataset.root=x", "trainer.epochs=2")
    assert changes(words) == ("device.precision=bf16", "trainer.epochs=2")
    assert changes(["device.precision=fp32", "device=cpu"]) == ()


STORED = """
import numpy as np
from pathlib import Path
import torch
from kdx.data.dataset import build_data
from kdx.data.preprocessing import PER_BATCH
from kdx.config.datasets import DatasetSettings

class Stored(DatasetSettings):
    image_shape = (1, 8, 8)
    classes = 2

    def load(self):
        parts = [torch.from_numpy(np.load(Path(self.root) / f"{part}.npy")) for part in ("train", "test")]
        pairs = [(images, torch.arange(len(images)) % 2) for images in parts]
        return build_data(self, *pairs, PER_BATCH["scale"])
"""


def test_images_that_no_checksum_vouches_for_are_in_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two folders are two experiments, also where only the test images differ; a copy is the same one."""
    project = '[project]\nname = "kdx-stored"\nversion = "1"\n[project.entry-points."kdx.datasets"]\n'
    choice = "name: stored\nroot: null\nvalidation: 4\nsplit_seed: 0\ntrain_size: null\npreprocessing: scale\n"
    files = {
        "pyproject.toml": project + 'stored = "kdx_stored:Stored"\n',
        "kdx_stored/__init__.py": STORED,
        "kdx_stored/conf/dataset/stored.yaml": choice + "mirror: none\ndownload: false\n",
    }
    install(files, tmp_path / "package", monkeypatch)
    images = {part: np.arange(count * 64, dtype=np.uint8).reshape(count, 1, 8, 8) for part, count in SIZES.items()}
    for name, changed in (("a", None), ("copy", None), ("train", "train"), ("test", "test")):
        (tmp_path / name).mkdir()
        for part, pixels in images.items():
            own = pixels.copy()
            own[0, 0, 0, 0] += part == changed
            np.save(tmp_path / name / f"{part}.npy", own)
    names = ("a", "copy", "train", "test")
    configs = {name: compose_config([*STORED_RUN, f"dataset.root={tmp_path / name}"]) for name in names}
    for id_of in (run_id, teacher_id):
        ids = {name: id_of(config) for name, config in configs.items()}
        assert ids["a"] == ids["copy"]
        assert len({ids["a"], ids["train"], ids["test"]}) == 3
    loads = _content_sha256.cache_info().misses
    compose_sweep([*STORED_RUN, f"dataset.root={tmp_path / 'a'}", "seed=0,1,2"])
    assert run_id(configs["a"]) == run_id(compose_config([*STORED_RUN, f"dataset.root={tmp_path / 'a'}"]))
    assert _content_sha256.cache_info().misses == loads
    with pytest.raises(FileNotFoundError):
        run_id(compose_config([*STORED_RUN, "dataset.root=nowhere"]))


SIZES = {"train": 40, "test": 20}
STORED_RUN = ("dataset=stored", "method=vanilla")


def test_the_source_of_a_package_is_part_of_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its version alone would not tell what `pip install --editable` and an editor made of it."""
    files, ids = sample_files(), []
    for place, more in (("before", ""), ("again", ""), ("edited", "\n# Another loss.\n")):
        with monkeypatch.context() as patch:
            edited = files | {"kdx_stripes/smooth_labels.py": files["kdx_stripes/smooth_labels.py"] + more}
            install(edited, tmp_path / place, patch)
            config = compose_config(["method=kd-smooth", "dataset=digits"])
            ids.append((run_id(config), teacher_id(config)))
    (before, teacher), again, (edited, same_teacher) = ids
    assert (before, teacher) == again
    assert edited != before
    assert same_teacher == teacher


def reversed_of(words: tuple[str, ...]) -> list[str]:
    return list(reversed(words))


def _other_type(number: float) -> float:
    return float(number) if isinstance(number, int) else int(number)
