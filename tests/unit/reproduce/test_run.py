"""The rows of a table that are trained together, where a GPU makes that worthwhile; here the CPU stands for it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.excerpt import only

from kdx.config.compose import compose_config
from kdx.errors import Diverged
from kdx.reproduce import run
from kdx.reproduce.jobs import Job, Request, jobs_of
from kdx.reproduce.run import run_all
from kdx.reproduce.tables import load_table

TINY = (
    *("teacher=mlp-1200-1200", "teacher.hidden=[6]", "student=lenet-300-100", "student.hidden=[6]"),
    *("device=cpu", "device.threads=1", "trainer.epochs=1"),
)


@pytest.fixture
def order(tmp_path: Path) -> Request:
    return Request("*", 2, "smoke", (*TINY, f"outputs={tmp_path}"), train=True)


def jobs(order: Request) -> list[Job]:
    return jobs_of(only(load_table("noisy/table1"), "sigma 0.?"), order)


def test_rows_and_seeds_that_fit_are_trained_together(order: Request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "is_faster", lambda config: True)
    each = jobs(order)
    done = run_all("a table", each, order, {})
    assert {one.status for one in done} == {"finished"}
    assert {one.figures["fused_models"] for one in done} == {len({job.run for job in each})} == {len(each)}
    assert run.train_fused(each) == {}


def test_a_run_that_diverges_is_not_tried_again(order: Request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "is_faster", lambda config: True)
    given = replace(order, overrides=(*order.overrides, "trainer.lr=1e30", "trainer.epochs=2"))
    each = jobs(given)[:2]
    monkeypatch.setattr("kdx.reproduce.run._train", lambda job: pytest.fail("trained again"))
    done = run_all("a table", each, given, {})
    assert [one.status for one in done] == ["failed", "failed"]
    assert all(one.reason.startswith(f"{Diverged.__name__}: ") for one in done)


@pytest.mark.parametrize(
    ("kind", "gpu", "expected"), [("auto", True, True), ("cpu", True, False), ("auto", False, False)]
)
def test_it_is_known_to_be_faster_on_a_gpu(monkeypatch: pytest.MonkeyPatch, kind: str, gpu: bool, expected: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert run.is_faster(compose_config([f"device={kind}"])) == expected
