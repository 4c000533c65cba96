"""Which jobs of a sweep are trained together, and how many fit in memory."""

import pytest
import torch
from helpers.miniature import convolutional, normal, perceptron
from torch import nn

from kdx.config.compose import compose_sweep
from kdx.methods.method import MODIFIERS
from kdx.sweep import grouping
from kdx.sweep.grouping import bytes_per_model, fusion_key, groups, models_that_fit, split_evenly


def grouped(*words: str) -> list[list[int]]:
    return groups([job.config for job in compose_sweep(["dataset=digits", *words])])


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd", "method.T=2,4", "method.lambda_T=0,1", "seed=0,1"],
        ["method=kd", "trainer.lr=1e-3,1e-2", "trainer.hold=0.2,1"],
        ["method=kd", "trainer.schedule=hold,one-cycle", "trainer.peak=0.1,0.5"],
        ["method=kd", "trainer.optimizer=sgd", "trainer.momentum=0,0.9", "trainer.weight_decay=1e-4,1e-2"],
        ["method=kd", "trainer.label_smoothing=0.1,0.2", "trainer.average=0.9,0.99"],
        ["method=kd", "method.standardize=true", "method.decoupled=true", "method.beta=1,8", "method.T=2,4"],
        ["method=dropout", "method.dropout=0.1,0.5"],
        ["method=noisy", "method.sigma=0,0.5", "method.alpha=0.1,0.9"],
        ["method=st-vbd", "method.lambda_V=0.1,1", "method.lambda_g=0,1", "method.warmup_end=3,4"],
        ["method=kd,paper/kd", "trainer.epochs=2", "trainer.batch_size=64", "trainer.lr=1e-3", "trainer.hold=1"],
        ["method=bc", "method.lambda_V=0.1,1", "method.threshold=3,[1,2,3]"],
        ["method=soft-labels", "method.alpha=0,1", "method.T=1,2", "force=true,false"],
    ],
)
def test_runs_that_differ_in_numbers_only_fit_together(words: list[str]):
    (group,) = grouped(*words)
    assert len(group) > 1


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd,vanilla"],
        ["method=kd", "method.kl_dir=ts,st"],
        ["method=kd", "student=lenet-300-100,mlp-500-50"],
        ["method=kd", "student.hidden=[10],[11]"],
        ["method=kd", "trainer.epochs=2,3"],
        ["method=kd", "trainer.batch_size=32,64"],
        ["method=kd", "teacher.seed=0,1"],
        ["method=kd", "dataset.split_seed=0,1"],
        ["method=kd", "dataset.train_size=100,200"],
        ["method=kd", "device.precision=fp32,bf16"],
        ["method=kd", "trainer.patience=null,3"],
        ["method=kd", "trainer.optimizer=adam,sgd"],
        ["method=kd", "method.standardize=true,false"],
        ["method=kd", "method.decoupled=true,false"],
        # Nothing in the step that would read the number.
        ["method=kd", "trainer.weight_decay=0,1e-4"],
        ["method=kd", "trainer.label_smoothing=0,0.1"],
        ["method=kd", "trainer.average=null,0.9"],
        # No dropout, no layer for it; no weight decay, no term.
        ["method=dropout", "method.dropout=0,0.5"],
        ["method=noisy", "method.l2=0,1e-3"],
        ["method=noisy", "method.resample=true,false"],
        ["method=bc", "method.clip_var=null,0.04"],
        ["method=st-bsr", "method.variational=svd,vbd"],
        ["method=st-vbd", "method.bsr.axis=0,1"],
        # Each of them needs more than one fit.
        ["method=kddp", "seed=0,1"],
        ["method=ip", "seed=0,1"],
        ["method=sgld", "seed=0,1"],
        ["method=bdk", "seed=0,1"],
        ["method=ikd", "seed=0,1"],
    ],
)
def test_other_runs_do_not(words: list[str]):
    assert grouped(*words) == [[0], [1]]


def test_groups_are_in_the_order_of_their_first_job():
    assert grouped("method=kd,ip,vanilla", "seed=0,1") == [[0, 1], [2], [3], [4, 5]]


def test_what_varies_are_settings():
    for job in compose_sweep(["dataset=digits", "method=kd,st-vbd,noisy,bc,dropout,soft-labels,kd-mixture,ip"]):
        values = {key: value for key, value in job.config.method.items() if key not in ("name", "procedure", "parts")}
        for name in job.config.method["parts"]:
            part = MODIFIERS.find(name, "method.parts")
            own = part.model_construct(**{key: values[key] for key in part.model_fields if key in values})
            assert own.batchable <= part.model_fields.keys(), name
    assert fusion_key(job.config) is None


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(16, 16, [16]), (16, 100, [16]), (16, 7, [5, 5, 6]), (3, 2, [1, 2]), (2, 1, [1, 1])]
)
def test_parts_are_equal(count: int, most: int, sizes: list[int]):
    found = split_evenly(range(count), most)
    assert [len(part) for part in found] == sizes
    assert [number for part in found for number in part] == list(range(count))


def test_how_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch):
    student, images = perceptron(hidden=5), normal(8, 1, 6, 6, seed=0)
    # 36-5-4 with biases, and what its flattening, two matrices and one ReLU give for 8 images.
    parameters, outputs = 36 * 5 + 5 + 5 * 4 + 4, 8 * (36 + 5 + 5 + 4)
    needed = bytes_per_model(student, images)
    assert needed == 4 * (10 * parameters + 8 * outputs + 8 * 36)
    assert bytes_per_model(student, images.repeat(2, 1, 1, 1)) > needed
    for free, expected in ((10 * needed, 7), (needed, 1), (0, 1)):
        monkeypatch.setattr(grouping, "_free_bytes", lambda device, free=free: free)
        assert models_that_fit(student, images) == expected


def test_the_estimate_leaves_the_network_as_it_is():
    student = nn.Sequential(convolutional(), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    bytes_per_model(student, normal(8, 2, 6, 6, seed=0))
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    assert student.training
    assert not any(layer._forward_hooks for layer in student.modules())


def test_there_is_memory_here():
    assert grouping._free_bytes(torch.device("cpu")) > 0
