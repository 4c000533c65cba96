"""CIFAR-10 on a slice of the real images: through the command line, and every network that is made for it."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT

from kdx.config.compose import compose_config
from kdx.data import load_data
from kdx.data.dataset import Data
from kdx.device.backend import Backend, prepare_device
from kdx.experiment import initial_student
from kdx.methods import build
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.models.weights import weight_matrices
from kdx.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(
    not Path(os.environ.get("KDX_DATA", ""), "cifar-10-batches-py").is_dir(),
    reason="KDX_DATA names no folder with CIFAR-10",
)
# Perceptrons are for small grey images; the students of a chain are made from its teacher.
NETWORKS = sorted(
    path.stem
    for path in ROOT.glob("conf/student/*.yaml")
    if not path.stem.startswith(("_", "mlp-", "lenet-300", "refined"))
)
SLICE = ("dataset=cifar10", "dataset.train_size=500", "dataset.validation=500", "dataset.mirror=random")


def test_one_epoch_on_a_slice(kdx, tmp_path: Path) -> None:
    result = kdx(
        "train",
        *SLICE,
        *("teacher=lenet5-caffe", "teacher.channels=[8]", "teacher.hidden=[20]", "teacher.trainer.epochs=1"),
        *("method=kd", "trainer.epochs=1", "device=cpu", "device.latency_seconds=0"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / result.stdout.strip().splitlines()[-1]
    figures = json.loads((folder / "metrics.json").read_text())
    assert (figures["dataset"], figures["student"], figures["parameters"]) == ("cifar10", "lenet5-caffe", 657_080)
    assert 0 < figures["test_error_percent"] < 95
    (rows,) = tmp_path.glob("outputs/logits/*/logits.f32")
    assert rows.stat().st_size == 4 * 500 * 2 * 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """32 training and 32 validation images of CIFAR-10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        whole = load_data(compose_config(SLICE).dataset)
    assert whole.validation is not None
    splits = (whole.train, whole.validation)
    train, validation = (replace(split, images=split.images[:32], labels=split.labels[:32]) for split in splits)
    return replace(whole, train=train, validation=validation)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return prepare_device(compose_config(["device=cpu", "device.compile=false"]).device)


@pytest.mark.parametrize("network", NETWORKS)
def test_one_epoch_of_every_network(network: str, data: Data, backend: Backend, tmp_path: Path) -> None:
    words = [*SLICE, f"student={network}", "method=vanilla", "trainer.epochs=1", "trainer.batch_size=16"]
    config = compose_config([*words, "trainer.checkpoint_seconds=1000"])
    student = initial_student(config, data)
    before = {name: weight.clone() for name, weight in weight_matrices(student).items()}
    method, _ = build(config.method)
    spec = FitSpec(network, config.trainer, config.seed, RunFolder(tmp_path))
    trained, progress = fit(student, method, TrainingInputs(data), spec, backend)
    # Up to 1.7 GB.
    spec.checkpoint.unlink()
    (row,) = progress.history
    assert row["loss"] is not None
    assert math.isfinite(row["loss"])
    assert row["val_error_percent"] in [100 * wrong / 32 for wrong in range(33)]
    after = weight_matrices(trained)
    assert after.keys() == before.keys()
    assert [name for name, weight in after.items() if weight.equal(before[name])] == []
    assert all(weight.isfinite().all() for weight in after.values())
