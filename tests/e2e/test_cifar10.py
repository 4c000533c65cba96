"""CIFAR-10 through the command line, on a slice of the real images."""

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path(os.environ.get("KDX_DATA", ""), "cifar-10-batches-py").is_dir(),
    reason="KDX_DATA names no folder with CIFAR-10",
)


def test_one_epoch_on_a_slice(kdx, tmp_path: Path) -> None:
    result = kdx(
        "train",
        *("dataset=cifar10", "dataset.train_size=500", "dataset.validation=500", "dataset.mirror=random"),
        *("method=kd", "trainer.epochs=1", "teacher.trainer.epochs=1", "teacher.channels=[8]", "teacher.hidden=[20]"),
        *("device=cpu", "device.latency_seconds=0"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / result.stdout.strip().splitlines()[-1]
    figures = json.loads((folder / "metrics.json").read_text())
    assert (figures["dataset"], figures["student"], figures["parameters"]) == ("cifar10", "lenet5-caffe", 657_080)
    assert 0 < figures["test_error_percent"] < 95
    (rows,) = tmp_path.glob("outputs/logits/*/logits.f32")
    assert rows.stat().st_size == 4 * 500 * 2 * 10
