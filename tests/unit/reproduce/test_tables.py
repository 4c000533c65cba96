"""The declared tables of the papers: every one composes, and every published number is found where it is said to be."""

from pathlib import Path

import pytest
import yaml
from helpers.excerpt import only

from kdx.config.groups import conf_folder
from kdx.errors import UserError
from kdx.reproduce.architecture import with_derived
from kdx.reproduce.cells import cells_of, check_claims
from kdx.reproduce.jobs import BUDGETS, JobResult, Request, jobs_of
from kdx.reproduce.published import Published, converted, select
from kdx.reproduce.run import run_all
from kdx.reproduce.tables import load_table, named, table_names
from kdx.runs.identity import run_id

FOLDER = conf_folder() / "paper"
FIG3 = ("test_error_percent", "multiplications_ratio")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", table_names())
def test_every_table_composes_at_every_budget(name: str, budget):
    table = load_table(name)
    if len(table.rows) > 30:  # Composing takes 0.1 s a row; the rows of a grid are all alike.
        table = table.model_copy(update={"rows": dict(list(table.rows.items())[::6])})
    jobs = jobs_of(table, Request(rows="*", seeds=2, budget=budget, overrides=("device.threads=1",), train=True))
    once, never = ("teacher", "network"), ("printed",)
    assert len(jobs) == sum(0 if row.of in never else 1 if row.of in once else 2 for row in table.rows.values())
    assert all(job.config.device.threads == 1 for job in jobs)
    assert all((job.config.dataset.name == "digits") == (budget == "smoke") for job in jobs)
    # Rows are different experiments, but for the data sets, which a smoke run does not have, and those rows of
    # noisy/table5 that read the printed ratio in the other way.
    students = [run_id(job.config) for job in jobs if job.subject == "student" and not job.row.endswith(", dropped")]
    assert len(set(students)) == len(students) or (budget == "smoke" and name == "vs/fig5")


@pytest.mark.parametrize("name", table_names())
def test_every_published_number_is_found(name: str):
    table = load_table(name)
    printed = {(row, column): table.printed(row, column) for row in table.rows for column in table.columns}
    for row, declared in table.rows.items():
        if declared.published:
            assert any(printed[row, column] for column in table.columns), row
    assert all(float(text) >= 0 for text in printed.values() if text)


def test_numbers_are_those_of_the_paper():
    table = load_table("vs/table1")
    assert table.printed("Le-L-ST-VBD", "test_error_percent") == "1.88"
    assert table.printed("Le-L-ST-VBD", "sparsity_percent.fc2") == "96.39"
    assert table.printed("Le-L-ST-VBD", "memory_compression") is None
    noisy = load_table("noisy/table1")
    assert noisy.printed("sigma 0.5", "test_error_percent") == "0.87"
    assert noisy.printed("sigma 0 (baseline)", "test_error_percent") == "0.97"
    assert noisy.printed("teacher", "test_error_percent") is None
    # A row whose errors are printed in a column of their own; its compression is where all rows have theirs.
    both = [load_table("noisy/fig3").printed("logit regression, Student1", column) for column in FIG3]
    assert both == ["19.36", "3.66"]


def test_scaling_keeps_the_printed_digits():
    assert converted("0.0097", 100) == "0.97"
    assert converted("1.880", 1) == "1.880"
    assert converted("0.05", 1000) == "50"
    assert converted("0.8808", -100, 100) == "11.92"
    # Zeros were printed as well.
    assert converted("0.0090", 100) == "0.90"
    assert converted("0.6900", -100, 100) == "31.00"
    assert converted("0.9", 100) == "90"


def test_selections_that_are_not_one_number_are_refused():
    with pytest.raises(ValueError, match=r"has \d+ numbers for"):
        select("vs_table1", Published(where={"metric": "sparsity_pct"}), {"network": "T1"})
    with pytest.raises(ValueError, match=r"lacks one of the columns"):
        select("vs_table1", Published(where={"nothing": "x"}), {"network": "T1"})
    assert select("vs_table1", Published(where={"metric": "speed"}), {"network": "T1"}) is None


def test_a_paper_is_all_of_its_tables():
    assert named("vs") == [name for name in table_names() if name.startswith("vs/")]
    with pytest.raises(UserError, match=r"^reproduce: 'vs/tabel1' is not known; did you mean 'vs/table1'\? allowed: "):
        named("vs/tabel1")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (("claims", 0), {"than": "nobody"}, r"claim 'ST-VBD is sparser than ST-SVD' speaks of \['nobody'\]"),
        (("rows", "IP"), {"instead": {"error": "value"}}, r"row 'IP' replaces error, which no column reads"),
        (("rows", "IP"), {"unlike": ["R_x"]}, r"row 'IP' speaks of R_x, which the table lacks"),
    ],
)
def test_names_that_a_table_lacks_are_refused(tmp_path, monkeypatch, part, change, message: str):
    (tmp_path / "paper" / "x").mkdir(parents=True)
    content = yaml.safe_load((FOLDER / "vs" / "table1.yaml").read_text())
    content[part[0]][part[1]].update(change)
    (tmp_path / "paper" / "x" / "table.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr("kdx.reproduce.tables.conf_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=message):
        load_table("x/table")


@pytest.mark.parametrize(("name", "fc1", "keras"), [("SN_50", 28_850, 85_104), ("SN_100", 57_700, 114_454)])
def test_counts_of_networks_need_no_training(name: str, fc1: int, keras: int):
    order = Request(rows=name, seeds=3, budget="paper", overrides=(), train=False)
    table = only(load_table("kddp/table1"), name)
    (done,) = run_all("a table", jobs_of(table, order), order, {})
    assert (done.figures["fc1_parameters"], done.figures["keras_parameters"]) == (fc1, keras)
    assert done.figures["fc1_percent"] == pytest.approx(100 * fc1 / keras)
    # 512 of Keras' are the moving statistics of four batch normalisations.
    assert done.figures["parameters"] == keras - 512
    assert {cell.verdict for cell in cells_of(table, [done]) if cell.published} == {"equal"}


def untrained(name: str, rows: str, outputs: Path) -> dict[str, JobResult]:
    order = Request(rows=rows, seeds=1, budget="paper", overrides=(f"outputs={outputs}",), train=False)
    done = run_all("a table", jobs_of(only(load_table(name), rows), order), order, {})
    assert {each.status for each in done} == {"missing"}
    return {each.job.row: each for each in done}


def test_a_size_that_training_changes_is_not_told_beforehand(tmp_path):
    done = untrained("kddp/table2", "*SN 50", tmp_path)
    assert done["Vanilla SN 50"].figures["keras_parameters"] == 85_104
    # Some of its neurons will be gone.
    assert "parameters" not in done["KDDP SN 50"].figures
    pruned = untrained("ikd/table2", "VGGNet-19, MNIST, M'_[01]", tmp_path)
    assert all(not each.figures for each in pruned.values())


def test_the_size_of_a_teacher_needs_no_training(tmp_path):
    """Table 2 prints 1,673,738 of ResNet-56 v2, as Keras counts."""
    teacher = untrained("kddp/table2", "Teacher", tmp_path)["Teacher"].figures
    assert (teacher["keras_parameters"], teacher["R_c"]) == (1_673_738, 1.0)


def test_generations_have_their_size_before_they_are_trained(tmp_path):
    """The ratios 1, 4, 16, 64 and 254 of IKD table 1: VGG-19, halved and halved again."""
    table = only(load_table("ikd/table1"), "VGGNet-19, CIFAR-10, *")
    done = untrained("ikd/table1", "VGGNet-19, CIFAR-10, *", tmp_path)
    cells = [cell for cell in cells_of(table, list(done.values())) if cell.column == "C"]
    assert [cell.published for cell in cells] == ["1", "4", "16", "64", "254"]
    assert {cell.verdict for cell in cells} == {"equal"}


def test_a_chain_that_was_ordered_shorter_lacks_generations(tmp_path):
    words = (f"outputs={tmp_path}", "method.generations=1")
    order = Request(rows="*", seeds=1, budget="paper", overrides=words, train=False)
    jobs = jobs_of(only(load_table("ikd/table1"), "VGGNet-19, MNIST, M_[012]"), order)
    assert [each.figures.get("C") is None for each in run_all("a table", jobs, order, {})] == [False, False, True]


def test_welchs_test_of_the_printed_runs():
    """KDDP table 5: t = 9.456 (df 16.7, p = 4.1e-8) and 2.835 (df 19.6, p = 0.0104); the paper has other variances."""
    order = Request(rows="*", seeds=1, budget="paper", overrides=(), train=False)
    table = only(load_table("kddp/table5"), "*printed runs")
    assert jobs_of(table, order) == []
    cells = cells_of(table, [])
    assert [cell.ours.n for cell in cells if cell.ours] == [11, 11, 11]
    assert {cell.verdict for cell in cells} == {"equal"}
    alone, distilled = check_claims(table, cells)
    assert (alone.answer, distilled.answer) == ("holds", "holds")
    assert (alone.test.t, alone.test.df, alone.test.p) == pytest.approx((-9.456, 16.7, 4.1e-8), rel=6e-3)
    assert (distilled.test.t, distilled.test.df, distilled.test.p) == pytest.approx((-2.835, 19.6, 0.0104), rel=6e-3)


def test_a_grid_combines_its_axes(tmp_path, monkeypatch):
    content = {
        "title": "a grid",
        "published": "vs_text",
        "dataset": ["dataset=mnist"],
        "columns": {"R_s": {"title": "R_s"}},
        "rows": {"level": {"train": ["method=kd"]}},
        "grid": [
            {"a": {"train": ["method=kd"], "published": {"quantity": "q"}}, "b": {"published": None}},
            {
                "1": {"train": ["method.T=1"], "smoke": ["seed=1"], "x": 1.0, "published": {"where": "w"}},
                "2": {"x": 2.0},
            },
        ],
    }
    file = tmp_path / "paper" / "x" / "table.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr("kdx.reproduce.tables.conf_folder", lambda: tmp_path)
    rows = load_table("x/table").rows
    assert list(rows) == ["level", *("a, 1", "a, 2", "b, 1", "b, 2")]
    first, last = rows["a, 1"], rows["b, 2"]
    assert (first.train, first.smoke, first.x, first.series) == (["method=kd", "method.T=1"], ["seed=1"], 1.0, "a")
    assert first.published == {"quantity": "q", "where": "w"}
    assert (last.train, last.published, last.x, last.series) == ([], {}, 2.0, "b")
    # Several grids are one behind the other.
    grid = content.pop("grid")
    file.write_text(yaml.safe_dump({**content, "grids": [grid, [{"c": {"train": ["method=svd"]}}]]}))
    several = load_table("x/table").rows
    assert {row: several[row] for row in rows} == rows
    assert (list(several)[-1], several["c"].train) == ("c", ["method=svd"])
    content["grid"] = grid
    content["grid"][0]["a"]["x"] = 3.0
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"several axes of a grid say the same: \[3\.0, 1\.0\]"):
        load_table("x/table")


def test_what_is_derived_follows_the_measured_network():
    """A student of which neurons were removed: KDDP table 2 prints 82,169 for 45 of 50 neurons."""
    figures = with_derived({"parameters": 85_104 - 512 - 5 * 587, "moving_statistics": 512})
    assert figures["keras_parameters"] == 82_169
