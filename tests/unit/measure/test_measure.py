from collections import OrderedDict
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from kdx.data.dataset import Data, Split
from kdx.measure import footprint, measure, sparsity
from kdx.measure.accuracy import count_errors, error_percent, logits_of
from kdx.storage.files import write_json


def mlp(*widths: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"relu{number}"] = nn.ReLU()
    layers.popitem()
    return nn.Sequential(layers)


def split(count: int = 30) -> Split:
    generator = torch.Generator().manual_seed(3)
    return Split(torch.randn(count, 1, 2, 2, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def data(train: Split, validation: Split | None, test: Split) -> Data:
    return Data("noise", train, validation, test, 3, "fingerprint")


def test_error_is_the_percentage_of_wrong_answers_for_every_batch_size():
    images = torch.eye(5).reshape(5, 1, 1, 5)
    labels = torch.tensor([0, 1, 2, 0, 0])
    model = nn.Sequential(nn.Flatten())
    assert [error_percent(model, Split(images, labels), size) for size in (1, 2, 5, 99)] == [40.0] * 4


def test_error_refuses_no_images_and_missing_labels():
    model = nn.Flatten()
    with pytest.raises(ValueError, match="0 images"):
        error_percent(model, Split(torch.empty(0, 1, 2, 2), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="2 labels"):
        error_percent(model, Split(torch.ones(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64)))


def test_logits_come_from_eval_mode_which_is_undone_module_by_module():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = logits_of(model, split(), batch_size=7)
    torch.testing.assert_close(logits, logits_of(model, split(), batch_size=30))
    assert logits.shape == (30, 1, 3)
    assert not logits.requires_grad
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("evaluate", [error_percent, count_errors, logits_of])
def test_evaluation_is_in_whole_float32_whatever_the_run_trains_in(evaluate):
    class Spy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(input)

    seen = set()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    evaluate(nn.Sequential(nn.Flatten(), Spy(4, 3)), split())
    assert seen == {("highest", False)}
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)


def test_mode_is_restored_after_a_failure():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        logits_of(model, Split(torch.ones(1, 5), torch.zeros(1)))
    assert model.training
    assert model[0].training


def test_bytes_of_a_matrix_counted_by_hand():
    weight = torch.tensor([[0.0, 1.5, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    assert footprint.matrix_dense_bytes(weight) == 48
    assert footprint.matrix_csr_bytes(weight) == 3 * 4 + 3 * 4 + 4 * 4  # values, columns, 3 + 1 row pointers


@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 5, 5), (4, 1, 3, 3)])
def test_csr_bytes_are_those_of_scipys_arrays(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.2)
    matrix = scipy.sparse.csr_matrix(weight.reshape(shape[0], -1).numpy())
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    assert footprint.matrix_csr_bytes(weight) == matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


def test_published_footprints():
    # T1, S1 and Le-L of VS, with biases.
    t1, s1, le_l = mlp(784, 1200, 1200, 10), mlp(784, 500, 50, 10), mlp(784, 300, 100, 10)
    # Of so many random weights one in forty networks has an exact zero.
    for parameter in s1.parameters():
        nn.init.ones_(parameter)
    assert footprint.dense_bytes(t1) == 9_580_840
    assert footprint.parameter_count(s1) == 418_060
    assert footprint.parameter_ratio(t1, le_l) == 2_395_210 / 266_610
    # A dense network as CSR: 8 bytes a weight, 4 a row pointer (501 + 51 + 11), 4 a bias.
    assert footprint.csr_bytes(s1) == 417_500 * 8 + 563 * 4 + 560 * 4
    assert footprint.memory_compression(t1, s1) == 9_580_840 / footprint.csr_bytes(s1)


def test_other_parameters_stay_dense_and_shared_ones_count_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.BatchNorm1d(4), shared, nn.Linear(4, 4, bias=False))
    model[3].weight = shared.weight
    assert list(footprint.weight_matrices(model)) == ["0"]
    assert footprint.dense_bytes(model) == (16 + 4 + 8) * 4
    assert footprint.csr_bytes(model) == 16 * 8 + 5 * 4 + (4 + 8) * 4


def test_layers_are_the_weight_matrices_in_order_and_survive_the_file(tmp_path):
    model = nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(2, 3, 2), bn=nn.BatchNorm2d(3), flat=nn.Flatten(), fc1=nn.Linear(3, 2))
    )
    with torch.no_grad():
        model.conv1.weight.fill_(1.0)
        model.conv1.weight[0] = 0.0
        model.fc1.weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    rows = sparsity.layers(model)
    assert rows == [
        sparsity.Layer("conv1", "3x2x2x2", 24, 16, pytest.approx(100 / 3), 96, 16 * 8 + 4 * 4),
        sparsity.Layer("fc1", "2x3", 6, 1, pytest.approx(500 / 6), 24, 1 * 8 + 3 * 4),
    ]
    assert sparsity.sparsity_ratio(rows) == 30 / 17
    sparsity.write_layers(tmp_path / "layers.csv", rows)
    header = (tmp_path / "layers.csv").read_text().splitlines()[0]
    assert header == "layer,shape,weights,nonzero,sparsity_percent,dense_bytes,csr_bytes"
    assert sparsity.read_layers(tmp_path / "layers.csv") == rows
    assert [file.name for file in tmp_path.iterdir()] == ["layers.csv"]


def test_measure_composes_the_figures(tmp_path):
    student, teacher, validation, test = mlp(4, 6, 3), mlp(4, 20, 3), split(10), split(40)
    with torch.no_grad():
        student.fc1.weight[:3] = 0.0
    measured = measure(student, teacher, data(split(), validation, test), torch.device("cpu"), latency_seconds=0)
    wrong = sum(
        int(student(image[None]).argmax() != label) for image, label in zip(test.images, test.labels, strict=True)
    )
    csr = (12 * 8 + 7 * 4) + (18 * 8 + 4 * 4) + 9 * 4
    expected = {
        "test_error_percent": 100 * wrong / 40,
        "val_error_percent": error_percent(student, validation),
        "teacher_test_error_percent": error_percent(teacher, test),
        "parameters": 51,
        "weights": 42,
        "nonzero_weights": 30,
        "sparsity_percent": pytest.approx(100 * 12 / 42),
        "R_s": 1.4,
        "R_c": 163 / 51,
        "dense_bytes": 204,
        "csr_bytes": csr,
        "teacher_dense_bytes": 652,
        "memory_compression": 652 / csr,
        "multiplications": 42,
        "nonzero_multiplications": 30,
        "teacher_multiplications": 140,
        "classes": 3,
    }
    assert {key: measured.figures[key] for key in expected} == expected
    assert [row.layer for row in measured.layers] == ["fc1", "fc2"]
    assert measured.latencies == []
    write_json(tmp_path / "metrics.json", measured.figures)


def test_what_does_not_exist_is_none(tmp_path):
    student = mlp(4, 3)
    nn.init.zeros_(student.fc1.weight)
    figures = measure(student, None, data(split(), None, split()), torch.device("cpu"), latency_seconds=0).figures
    absent = {key for key, value in figures.items() if value is None}
    without_latency = {key for key in figures if "latency" in key} | {"csr_runtime"}
    nothing_to_compare = {"val_error_percent", "teacher_test_error_percent", "R_c", "teacher_dense_bytes"}
    nothing_to_compare |= {"memory_compression", "teacher_multiplications"}
    assert absent == without_latency | nothing_to_compare | {"R_s"}
    assert figures["sparsity_percent"] == 100.0
    write_json(tmp_path / "metrics.json", figures)


def test_a_network_without_weight_matrices_is_refused():
    with pytest.raises(ValueError, match="no weight matrix"):
        measure(nn.Flatten(), None, data(split(), None, split()), torch.device("cpu"), latency_seconds=0)


def test_layer_has_the_columns_of_the_contract():
    assert [field.name for field in fields(sparsity.Layer)] == [
        "layer", "shape", "weights", "nonzero", "sparsity_percent", "dense_bytes", "csr_bytes",
    ]  # fmt: skip
