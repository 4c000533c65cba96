"""The papers' printed settings reach the runs of their tables (VS, IKD, KDDP, Noisy Teachers)."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.excerpt import ORDER, only

from kdx.reproduce.jobs import jobs_of
from kdx.reproduce.tables import load_table
from kdx.runs.reader import flat

CONSTANT = {"trainer.hold": 1.0}
VS = {**CONSTANT, "trainer.batch_size": 100, "method.T": 20, "method.lambda_T": 2, "method.lambda_g": 0.01}
IKD = {**CONSTANT, "trainer.lr": 1e-4, "trainer.batch_size": 64, "method.T": 20, "method.alpha": 0.7}
KDDP = {**CONSTANT, "trainer.lr": 1e-4, "trainer.batch_size": 64, "trainer.patience": 50, "dataset.validation": 10_000}
NOISY = {**CONSTANT, "trainer.lr": 1e-3, "trainer.batch_size": 64, "method.resample": True, "method.per": "sample"}
COLOURS = {**NOISY, "dataset.validation": 0, "dataset.mirror": "copies", "dataset.preprocessing": "per-pixel-mean"}


@pytest.mark.parametrize(
    ("table", "row", "expected"),
    [
        ("vs/table1", "Le-L-ST-VBD as printed", {**VS, "trainer.lr": 1e-3, "dataset.validation": 0}),
        ("vs/table1", "Le-L-ST-SVD as printed", {**VS, "trainer.lr": 1e-3, "method.log_sigma2_init": -10}),
        ("vs/table3", "ST-VBD-l1/l2 as printed", {**VS, "trainer.lr": 5e-4, "method.bsr.norm": "l1_l2"}),
        ("vs/table1", "BC", {**CONSTANT, "trainer.lr": 1e-3, "trainer.batch_size": 128, "method.clip_var": 0.04}),
        (
            "vs/table1",
            "BC",
            {"method.log_sigma2_init": -9, "method.warmup_end": 0, "dataset.preprocessing": "symmetric"},
        ),
        ("vs/fig5", "BDK, 500", {"method.eta": 4e-5, "method.input_noise": 0.0005, "method.prior": 1}),
        ("vs/fig5", "SGLD, 60,000", {"method.eta": 4e-6, "method.prior": 1}),
        ("ikd/table1", "VGGNet-19, MNIST, M_1", {**IKD, "method.generations": 4, "method.refine": "filters"}),
        ("ikd/table2", "VGGNet-19, MNIST, M'_1", {**IKD, "method.prune": True}),
        ("kddp/table2", "KDDP SN 50", {**KDDP, "method.T": 2, "method.alpha": 0.5, "method.L1": 1e-4}),
        ("kddp/table2", "Vanilla KD SN 50", {**KDDP, "method.T": 2, "method.alpha": 0.5, "dataset.mirror": "random"}),
        ("kddp/table4", "SN 100, T 5000, alpha 1", {**KDDP, "method.T": 5000, "method.alpha": 1, "method.L1": 1e-4}),
        ("noisy/table1", "sigma 0.9 as printed", {**NOISY, "method.alpha": 0.15, "dataset.validation": 10_000}),
        ("noisy/table2", "sigma 0.5", {**NOISY, "method.alpha": 0.15, "dataset.validation": 6000}),
        ("noisy/table3", "sigma 0.5", {**COLOURS, "method.alpha": 0.5, "method.sigma": 0.5}),
        ("noisy/table4", "alpha 0.8", {**COLOURS, "method.alpha": 0.8, "method.sigma": 0.6}),
        ("noisy/fig2", "noisy student, 0.6", {**COLOURS, "method.noise_in": "student", "method.sigma": 0.6}),
        ("noisy/text", "random sigma", {**COLOURS, "method.sigma": None, "method.sigma_range": [0.01, 1.0]}),
    ],
)
def test_settings(table: str, row: str, expected: dict[str, Any]):
    (job,) = jobs_of(only(load_table(table), row), replace(ORDER, seeds=1))
    settings = flat(job.config.model_dump(mode="json"))
    assert {key: settings[key] for key in expected} == expected
