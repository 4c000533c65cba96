"""The CSR runner without torch: the same logits, no torch, and no damaged file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.masks import sparse
from helpers.miniature import convolutional, normal
from helpers.networks import IMAGE, SETTINGS, small
from torch import nn

import kdx.deploy
from kdx.deploy import DamagedFile
from kdx.errors import UserError
from kdx.export.csr import VALUES, rounded, save_csr
from kdx.models.ensemble import Ensemble
from kdx.storage.tensors import save_tensors


def exported(path: Path, network: nn.Module, shape: tuple[int, ...] = IMAGE, values="fp32") -> Path:
    save_csr(path / "student.csr.safetensors", network, shape, values)
    return path / "student.csr.safetensors"


def assert_same(path: Path, network: nn.Module, shape: tuple[int, ...] = IMAGE) -> None:
    loaded = kdx.deploy.load(path)
    for batch in (1, 5):
        images = normal(batch, *shape, seed=batch)
        with torch.no_grad():
            expected = network(images).numpy()
        dense = loaded.with_runtimes({matrix.name: "dense" for matrix in loaded.matrices()})
        for each in (loaded, dense):
            np.testing.assert_allclose(each(images.numpy()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SETTINGS)
def test_it_does_what_torch_does(family: str, tmp_path: Path):
    network = sparse(small(family))
    assert_same(exported(tmp_path, network), network)


def test_groups_strides_and_dilation(tmp_path: Path):
    network = convolutional().eval()
    assert_same(exported(tmp_path, network, (2, 6, 6)), network, (2, 6, 6))


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.AvgPool2d(2, stride=3, ceil_mode=True),
        nn.AdaptiveAvgPool2d(4),
        nn.ZeroPad2d((1, 2, 3, 4)),
    ],
    ids=str,
)
def test_windows(pool: nn.Module, side: int, tmp_path: Path):
    network = nn.Sequential(pool, nn.Flatten()).eval()
    assert_same(exported(tmp_path, network, (2, side, side)), network, (2, side, side))


def test_a_large_convolution_is_multiplied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = sparse(small("lenet"))
    path = exported(tmp_path, network)
    monkeypatch.setattr("kdx.deploy.layers.COLUMN_NUMBERS", 2 * 25 * 64)
    assert_same(path, network)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("family", ["mlp", "lenet"])
def test_rounded_weights(family: str, values, tmp_path: Path):
    network = sparse(small(family))
    path = exported(tmp_path, network, values=values)
    original = {name: value.clone() for name, value in network.named_parameters()}
    rounded(network, values)
    assert_same(path, network)
    for name, value in network.named_parameters():
        largest = original[name].flatten(1).abs().amax(1) if value.dim() > 1 else torch.zeros(())
        bound = {"fp32": 0.0, "fp16": 2**-11, "int8": 0.5001 / 127}[values] * largest
        assert ((value - original[name]).abs().flatten(1).amax(1) if value.dim() > 1 else bound).le(bound).all()


def test_indices_take_two_bytes_where_they_fit(tmp_path: Path):
    def types(network: nn.Module, shape: tuple[int, ...]) -> dict[str, str]:
        content = exported(tmp_path, network, shape).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}

    wide = nn.Sequential(nn.Flatten(), nn.Linear(70_000, 1))
    assert types(wide, (1, 700, 100)) == {
        "1.values": "F32", "1.columns": "I32", "1.pointers": "I32", "1.bias": "F32",
    }  # fmt: skip
    assert types(small("mlp"), IMAGE)["fc1.columns"] == "U16"


def test_it_needs_neither_torch_nor_pydantic(tmp_path: Path):
    network = sparse(small("lenet"))
    path = exported(tmp_path, network)
    program = (
        "import sys, numpy, kdx.deploy\n"
        f"print(kdx.deploy.load({str(path)!r})(numpy.zeros((2, *{IMAGE}), dtype=numpy.float32)).shape)\n"
        "print(sorted({'torch', 'pydantic', 'safetensors', 'hydra', 'pickle5'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["(2, 4)", "[]"]


def test_every_truncation_is_refused(tmp_path: Path):
    path = exported(tmp_path, sparse(small("mlp")))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFile):
            kdx.deploy.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DamagedFile, match="longer"):
        kdx.deploy.load(path)


def test_every_changed_number_is_refused(tmp_path: Path):
    path = exported(tmp_path, sparse(small("mlp")))
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for place in range(data, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedFile, match="hash"):
            kdx.deploy.load(path)


def test_a_changed_header_is_refused_or_without_effect(tmp_path: Path):
    network = sparse(small("mlp"))
    path = exported(tmp_path, network)
    content = path.read_bytes()
    changed = range(0, 8 + int.from_bytes(content[:8], "little"), 3)
    refusals = []
    for place in changed:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            kdx.deploy.load(path)
        except DamagedFile as error:
            refusals.append(str(error))
        else:
            assert_same(path, network)
    assert len(refusals) > 0.95 * len(changed)
    assert not any("\n" in line for line in refusals)


def test_another_safetensors_file_is_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"weight": torch.ones(2)})
    with pytest.raises(DamagedFile, match="its format is None, expected 'kdx-csr-1'"):
        kdx.deploy.load(path)
    with pytest.raises(FileNotFoundError):
        kdx.deploy.load(tmp_path / "absent")


def test_indices_out_of_bounds_are_refused(tmp_path: Path):
    path = tmp_path / "made-up.safetensors"
    entry = {"layer": "linear", "name": "fc", "shape": [1, 2]}
    header = {"format": "kdx-csr-1", "image_shape": [2], "layers": [entry]}
    tensors = {"fc.values": torch.ones(1), "fc.columns": torch.tensor([7], dtype=torch.int32)}
    save_tensors(path, tensors | {"fc.pointers": torch.tensor([0, 1], dtype=torch.int32)}, header)
    with pytest.raises(DamagedFile, match="indices must be < 2"):
        kdx.deploy.load(path)


def test_images_of_another_shape_are_refused(tmp_path: Path):
    network = kdx.deploy.load(exported(tmp_path, small("mlp").eval()))
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 3\): expected \(1, 12, 12\)"):
        network(np.zeros((1, 1, 3, 3), dtype=np.float32))


def test_an_unknown_layer_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="'csr' has nothing for 0, Tanh"):
        exported(tmp_path, nn.Sequential(nn.Tanh()))
    with pytest.raises(UserError, match="'csr' has nothing for the network, Ensemble; allowed: shrink, onnx, torch"):
        exported(tmp_path, Ensemble([small("mlp")]))


def test_the_faster_way_is_taken_for_each_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = sparse(small("lenet"))
    loaded = kdx.deploy.load(exported(tmp_path, network))
    monkeypatch.setattr("kdx.deploy.choice.SECONDS", 0.0)
    images = normal(3, *IMAGE, seed=3).numpy()
    measured = kdx.deploy.choices(loaded, images)
    assert [choice.name for choice in measured] == ["conv1", "fc1", "fc2"]
    for choice, matrix in zip(measured, loaded.matrices(), strict=True):
        faster = choice.against_dense.median >= 1 and not choice.against_dense.is_noise
        assert choice.runtime == ("csr" if faster else "dense")
        assert choice.sparsity == pytest.approx(float((matrix.csr.toarray() == 0).mean()))
        assert choice.crossover is None or 0 <= choice.crossover <= 1
    chosen = kdx.deploy.fastest(loaded, measured)
    assert [matrix.dense is not None for matrix in chosen.matrices()] == [
        choice.runtime == "dense" for choice in measured
    ]
    np.testing.assert_allclose(chosen(images), loaded(images), atol=1e-5)


def test_where_csr_begins_to_win_and_where_noise_leaves_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """CSR that takes 1.9 (1 - sparsity) times as long as dense, by random matrices, wins from 0.9 / 1.9 on."""
    noise: dict[str | float, float] = {}

    def time_in_rounds(calls: dict[str | float, object], _: float) -> dict[str | float, list[list[float]]]:
        alone = {"csr": 0.8, "dense": 1.0} | {step: 1.9 * (1 - step) for step in calls if isinstance(step, float)}
        return {name: [[alone[name]], [alone[name] * noise.get(name, 1.0)]] * 10 for name in calls}

    monkeypatch.setattr("kdx.deploy.choice.time_in_rounds", time_in_rounds)
    loaded = kdx.deploy.load(exported(tmp_path, sparse(small("lenet"))))
    images = normal(3, *IMAGE, seed=3).numpy()
    first, *_ = kdx.deploy.choices(loaded, images)
    assert (first.runtime, first.against_dense.median) == ("csr", pytest.approx(1.25))
    assert (first.crossover, first.crossover_is_noise) == (pytest.approx(0.9 / 1.9), False)
    # The step beside which it lies, and what is not beside it.
    for step, is_noise in ((0.25, True), (0.0, False), (0.9, False)):
        noise = {step: 1.6}
        assert kdx.deploy.choices(loaded, images)[0].crossover_is_noise == is_noise
    noise = {"csr": 1.6}
    assert [choice.runtime for choice in kdx.deploy.choices(loaded, images)] == ["dense"] * 3
