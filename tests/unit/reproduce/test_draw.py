"""What the figures show: every point, every published number, what is missing."""

from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from helpers.excerpt import ORDER, only
from matplotlib.container import BarContainer
from matplotlib.patches import StepPatch

from kdx.analysis.palette import COLOURS
from kdx.analysis.statistics import Estimate
from kdx.reproduce.cells import Cell
from kdx.reproduce.draw import draw, picture
from kdx.reproduce.figures import Lines
from kdx.reproduce.histograms import histograms_of, read_histograms
from kdx.reproduce.jobs import JobResult, jobs_of
from kdx.reproduce.tables import PaperTable, load_table, table_names
from kdx.storage.tensors import save_tensors


def cells_from(table: PaperTable, ours: dict[str, tuple[float, ...]]) -> list[Cell]:
    return [
        Cell(row, column, Estimate(ours[row]) if row in ours else None, table.printed(row, column), "", (), row in ours)
        for row in table.rows
        for column in table.columns
    ]


def test_lines_and_levels():
    table = load_table("noisy/fig2")
    ours = {"noisy teacher, 0.1": (20.0, 21.0, 22.0), "noisy teacher, 0.5": (19.0,), "logit regression": (22.0, 24.0)}
    (axes,) = picture(table, ORDER, [], cells_from(table, ours), {}).axes
    lines = {line.get_label(): np.array(line.get_data()).T.tolist() for line in axes.get_lines()}
    # What is missing between the two is a gap: nobody shall read a value off the line.
    points = dict(lines["noisy teacher"])
    assert len(points) == 10
    assert {x: y for x, y in points.items() if not isnan(y)} == {0.1: 21.0, 0.5: 19.0}
    # All ten numbers of table 3, whether or not there are runs; none for the student's noise.
    assert len(lines["noisy teacher, paper"]) == 10
    assert lines["noisy teacher, paper"][0] == [0.1, 21.04]
    assert not any("noisy student" in label for label in lines)
    assert lines["logit regression"] == [[0.0, 23.0], [1.0, 23.0]]
    assert lines["logit regression, paper"] == [[0.0, 21.94], [1.0, 21.94]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sigma", "test error %")
    # The interval of three values, sd 1: 2.48 to both sides.
    (interval, *_) = [each.get_segments()[0] for each in axes.collections if hasattr(each, "get_segments")]
    assert interval[:, 1].tolist() == pytest.approx([21 - 2.484, 21 + 2.484], abs=1e-3)


def test_a_logarithmic_axis_names_its_points():
    table = only(load_table("vs/fig5"), "KD-SVD, *")
    (axes,) = picture(table, ORDER, [], cells_from(table, {"KD-SVD, 500": (9.0,), "KD-SVD, 60,000": (2.0,)}), {}).axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["500", "1k", "2k", "5k", "10k", "20k", "60k"]
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    ticks = {tick: text.get_text() for tick, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    # More than the power of ten alone.
    assert {tick: text for tick, text in ticks.items() if low < tick < high} == {2: "2", 5: "5"}


def test_the_lines_of_every_figure_have_colours_of_their_own():
    for name in table_names():
        table = load_table(name)
        if isinstance(table.figure, Lines):
            names = {row.series for row in table.rows.values() if row.x is not None}
            assert len(names) <= len(set(COLOURS)), name


def test_bars_have_a_panel_for_each_network():
    table = only(load_table("vs/fig3"), "*-VBD")
    assert list(table.rows) == ["S1, KD-VBD", "S1, ST-VBD", "Le-L, KD-VBD", "Le-L, ST-VBD"]
    ours = {"S1, KD-VBD": (30.0, 32.0), "S1, ST-VBD": (50.0,), "Le-L, ST-VBD": (99.0,)}
    first, second = picture(table, ORDER, [], cells_from(table, ours), {}).axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("S1", "Le-L")
    (bars,) = [each for each in first.containers if isinstance(each, BarContainer)]
    assert [bar.get_width() for bar in bars] == [31.0, 50.0]
    assert [text.get_text() for text in first.get_yticklabels()] == ["KD-VBD", "ST-VBD"]
    # The best of the paper is a line in each panel.
    levels = [
        line.get_xdata()[0] for axes in (first, second) for line in axes.get_lines() if len(line.get_xdata()) == 2
    ]
    assert levels == [47.42, 63.64]
    assert "missing" in [text.get_text().strip() for text in second.texts]
    assert "paper 47.42" in [text.get_text().strip() for text in first.texts]


def test_bars_side_by_side():
    table = only(load_table("vs/fig6"), "S1, *-VBD")
    (axes,) = picture(table, ORDER, [], cells_from(table, {"S1, KD-VBD": (0.5,), "S1, ST-VBD": (2.0,)}), {}).axes
    bars = [each for each in axes.containers if isinstance(each, BarContainer)]
    assert [group.get_label() for group in bars] == ["masked in every forward", "dense", "shrunk", "CSR"]
    # To the left what is slower than the teacher, to the right what is faster.
    assert axes.get_xscale() == "log"
    assert [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in group] for group in bars] == [
        [(1, 0.5), (1, 2)]
    ] * 4
    # 0.29 ms over 0.470 and 0.257 ms.
    assert {"paper 0.617", "paper 1.128"} <= {text.get_text().strip() for text in axes.texts}
    # None covers another.
    edges = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for group in bars for bar in group)
    assert all(above[1] <= below[0] + 1e-9 for above, below in pairwise(edges))


def test_a_number_that_lacks_a_seed_says_so():
    table = only(load_table("vs/fig6"), "S1, *-VBD")
    cells = cells_from(table, {"S1, KD-VBD": (0.5, 0.5), "S1, ST-VBD": (2.0,)})
    (axes,) = picture(table, ORDER, [], [replace(cells[0], lacking=(1,)), *cells[1:]], {}).axes
    assert [text.get_text().strip() for text in axes.texts[:2]] == ["0.5x (2 of 3)", "2x"]
    table = load_table("noisy/fig2")
    cells = [
        replace(cell, lacking=(2,)) if cell.ours else cell
        for cell in cells_from(table, {"noisy teacher, 0.1": (20.0, 21.0), "logit regression": (22.0, 24.0)})
    ]
    (axes,) = picture(table, ORDER, [], cells, {}).axes
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [(" (2 of 3)", (0.1, 20.5))]
    assert "logit regression (2 of 3)" in [line.get_label() for line in axes.get_lines()]


def test_panels_share_a_legend_outside_and_one_without_values_is_a_line():
    table = only(load_table("vs/fig6"), "*-VBD")
    canvas = picture(table, ORDER, [], cells_from(table, {"S1, KD-VBD": (0.5,), "S1, ST-VBD": (2.0,)}), {})
    empty, filled = canvas.axes
    assert (empty.get_title(loc="left"), filled.get_title(loc="left")) == ("Le-C: not run", "S1")
    assert (empty.axison, filled.axison) == (False, True)
    assert empty.get_position().height < filled.get_position().height / 3
    assert empty.get_legend() is filled.get_legend() is None
    (legend,) = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["masked in every forward", "dense", "shrunk", "CSR"]


@pytest.fixture
def histograms(tmp_path: Path) -> tuple[PaperTable, list[JobResult]]:
    table = only(load_table("vs/fig4"), "l1/l2, *")
    jobs = jobs_of(table, replace(ORDER, seeds=2, overrides=(f"outputs={tmp_path}",)))
    weights = torch.tensor([[0.0, 0.0, 0.25], [-0.5, 0.0, 0.25]])
    for job in jobs[:2]:
        job.folder.path.mkdir(parents=True)
        # The second seed must not be shown.
        save_tensors(job.folder.path / "student.safetensors", {"w": weights * (1 + job.seed), "b": torch.ones(5)})
    ends = ("finished", "finished", "missing", "missing")
    return table, [JobResult(job, end, "", {}) for job, end in zip(jobs, ends, strict=True)]


def test_histograms_of_weights(histograms: tuple[PaperTable, list[JobResult]]):
    table, done = histograms
    found = histograms_of(done, {})
    first, second = picture(table, ORDER, done, [], found).axes
    (steps,) = first.patches
    assert isinstance(steps, StepPatch)
    values, edges, _ = steps.get_data()
    centres = (edges[1:] + edges[:-1]) / 2
    counts = {round(centre, 2) + 0.0: count for centre, count in zip(centres, values, strict=True) if count}
    # Biases are no weights; zeros are in the middle.
    assert counts == {0.0: 3, 0.25: 2, -0.5: 1}
    assert [text.get_text() for text in first.texts] == ["zero: 50.0 %"]
    assert [text.get_text() for text in second.texts] == ["missing"]


def test_a_figure_keeps_the_histograms_of_runs_that_are_gone(histograms, tmp_path: Path):
    table, done = histograms
    folder = tmp_path / "figure"
    draw(folder, table, ORDER, done, [])
    first = (folder / "figure.svg").read_bytes()
    rmtree(done[0].job.folder.path)
    recorded = [replace(done[0], recorded={"cpu": "another one"}), *done[1:]]
    draw(folder, table, ORDER, recorded, [])
    assert (folder / "figure.svg").read_bytes() == first
    # A run that is here has bins of the same width beside it, however large its weights are.
    other = replace(done[1], job=replace(done[1].job, row="another"))
    found = histograms_of([recorded[0], other], read_histograms(folder))
    widths = [np.diff(each.edges) for each in found.values()]
    assert len(widths) == 2
    np.testing.assert_allclose(np.concatenate(widths), 1 / 101, rtol=1e-9)
    assert [sum(each.counts) for each in found.values()] == [6, 6]
    assert [each.zeros for each in found.values()] == [3, 3]


def test_files_are_the_same_again_and_a_smoke_run_is_marked(histograms, tmp_path: Path):
    table, done = histograms
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        draw(folder, table, replace(ORDER, budget="smoke"), done, [])
    for name in ("figure.svg", "figure.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    marked = picture(table, replace(ORDER, budget="smoke"), done, [], {})
    assert marked.get_suptitle() == "budget=smoke: not a result"
    with pytest.raises(ValueError, match="vs/table1 is no figure"):
        picture(load_table("vs/table1"), ORDER, [], [], {})
