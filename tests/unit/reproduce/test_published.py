"""What is printed more than once, or follows from what else is printed, agrees: a slip in a CSV file would show."""

from collections.abc import Mapping

import pytest

from kdx.reproduce.published import Published, read_published, select

LE_L = {"1": 784 * 300, "2": 300 * 100, "3": 100 * 10}
S1 = {"1": 784 * 500, "2": 500 * 50, "3": 50 * 10}
LE_C = {"conv1": 3 * 20 * 25, "conv2": 20 * 50 * 25, "fc1": 50 * 5 * 5 * 500, "fc2": 500 * 10}
T1_WEIGHTS, T1_PARAMETERS, VGG_PARAMETERS = 2_392_800, 2_395_210, 139_611_210


def number(file: str, column: str = "value", **where: str) -> float:
    text = select(file, Published(value=column), where)
    assert text is not None, (file, where)
    return float(text)


def nonzero(file: str, network: str, weights: Mapping[str, int]) -> float:
    """How many weights the printed sparsities leave in these layers."""
    shares = {layer: number(file, network=network, metric="sparsity_pct", layer=layer) for layer in weights}
    return sum(count * (1 - shares[layer] / 100) for layer, count in weights.items())


@pytest.mark.parametrize("network", ["Le-L-ST-SVD", "Le-L-ST-VBD"])
def test_sparsity_ratios_of_vs_table_1_count_the_weights_of_all_matrices(network: str):
    ratio = sum(LE_L.values()) / nonzero("vs_table1", network, LE_L)
    assert ratio == pytest.approx(number("vs_table1", network=network, metric="R_s"), abs=0.011)


@pytest.mark.parametrize("network", [f"S1-{name}" for name in ("SVD", "VBD", "KD-SVD", "KD-VBD", "ST-SVD", "ST-VBD")])
def test_sparsity_ratios_of_vs_table_2_leave_the_last_matrix_between_dense_and_empty(network: str):
    hidden = nonzero("vs_table2", network, {layer: S1[layer] for layer in ("1", "2")})
    low, high = (sum(S1.values()) / (hidden + rest) for rest in (S1["3"], 0))
    assert low - 0.01 < number("vs_table2", network=network, metric="R_s") < high + 0.01


@pytest.mark.parametrize(
    "network", ["KD-VBD", "ST-SVD-l1/linf", "ST-SVD-l1/l2", "ST-VBD-l1/linf", "ST-VBD-l1/l2", "Simple", "KD-D"]
)
def test_sparsity_ratios_of_vs_table_3_follow_from_its_sparsities(network: str):
    ratio = sum(LE_C.values()) / nonzero("vs_table3", network, LE_C)
    assert ratio == pytest.approx(number("vs_table3", network=network, metric="R_s"), abs=0.0101)


def test_one_row_of_vs_table_3_has_a_misprint():
    """KD-SVD's 30.25 % of fc1 gives 1.41; with two digits exchanged for 33.25 it is the printed 1.47."""
    left, printed = nonzero("vs_table3", "KD-SVD", LE_C), number("vs_table3", network="KD-SVD", metric="R_s")
    assert sum(LE_C.values()) / left == pytest.approx(1.41, abs=0.01)
    assert sum(LE_C.values()) / (left - 0.03 * LE_C["fc1"]) == pytest.approx(printed, abs=0.005)


def test_ratios_of_parameters():
    parameters = {
        network: number("vs_table1", network=network, metric="parameters")
        for network in (
            "T1",
            "Le-L-ST-VBD",
            "IP (Han et al. 2015)",
            "BDK (Balan et al. 2015)*",
            "BC (Louizos et al. 2017)",
        )
    }
    over = dict.fromkeys(parameters, T1_PARAMETERS) | {
        "IP (Han et al. 2015)": T1_WEIGHTS,
        "BDK (Balan et al. 2015)*": 784 * 400 + 400 * 400 + 400 * 10,
    }
    for network, count in parameters.items():
        ratio = number("vs_table1", network=network, metric="R_c")
        assert over[network] / count == pytest.approx(ratio, abs=0.0051), network
    printed = number("vs_table3", network="Le-C family", metric="compression_x")
    own = number("vs_table3", network="Le-C family", metric="parameters")
    assert own == sum(LE_C.values()) + 20 + 50 + 500 + 10
    assert VGG_PARAMETERS / own == pytest.approx(printed, abs=0.005)


def test_memory_of_the_student_in_csr():
    """Four bytes for each value, column, row pointer and bias; the printed last matrix may be dense or empty."""
    hidden = nonzero("vs_table2", "S1-ST-SVD", {layer: S1[layer] for layer in ("1", "2")})
    rows, biases = 784 + 500 + 50 + 3, 500 + 50 + 10
    most, least = (8 * (hidden + rest) + 4 * (rows + biases) for rest in (S1["3"], 0))
    assert 4 * T1_PARAMETERS / most < number("vs_text", quantity="memory_compression_best_S1_x") + 0.5
    assert 4 * T1_PARAMETERS / least > number("vs_text", quantity="memory_compression_best_S1_x") - 0.5


@pytest.mark.parametrize("table", ["noisy_table1", "noisy_table2", "noisy_table3", "noisy_table4"])
def test_improvements_of_noisy_teachers_are_over_the_baseline(table: str):
    error = "error_rate" if table == "noisy_table1" else "error_rate_pct"
    for line in read_published(table):
        improvement = 100 * (1 - float(line[error]) / float(line[f"baseline_{error}"]))
        assert improvement == pytest.approx(float(line["improvement_pct"]), abs=0.051)


def test_noisy_teachers_print_one_cell_twice():
    assert number("noisy_table4", "error_rate_pct", alpha="0.5") == number(
        "noisy_table3", "error_rate_pct", sigma="0.60"
    )


def test_compression_of_noisy_students_is_that_of_rounded_millions():
    teacher = number("noisy_text", quantity="teacher_multiplications_M")
    for student in ("1", "2", "3"):
        ratio = teacher / number("noisy_text", quantity=f"student{student}_multiplications_M")
        assert ratio == pytest.approx(
            number("noisy_table6", "compression_ratio", student=f"Student{student}"), abs=0.0051
        )


def test_kddp_prints_its_students_in_several_tables():
    """Table 3 at L1 1e-4 is table 4 at alpha 0.5; at T 2 both are table 2, and run 0 of table 5."""
    third = [line for line in read_published("kddp_table3") if line["L1"] == "1e-4"]
    assert len({(line["fc1_start"], line["T"]) for line in third}) == len(third) == 36
    for line in third:
        where = {"fc1_start": line["fc1_start"], "T": line["T"], "alpha": "0.5"}
        for column in ("test_accuracy", "fc1_final"):
            assert number("kddp_table4", column, **where) == float(line[column]), where
    for units, left in (("50", "45"), ("100", "83"), ("500", "264")):
        (label,) = (
            line["model"] for line in read_published("kddp_table2") if line["model"].startswith(f"KDDP SN {units} ")
        )
        where = {"fc1_start": units, "T": "2", "L1": "1e-4"}
        assert number("kddp_table3", "test_accuracy", **where) == number("kddp_table2", "test_accuracy", model=label)
        assert number("kddp_table3", "fc1_final", **where) == float(left)
        assert f"={left})" in label
    for model, label in (("Vanilla", "Vanilla SN 100"), ("Vanilla-KD", "Vanilla KD SN 100")):
        first = number("kddp_table5", run_or_stat="0", model=model)
        assert first == number("kddp_table2", "test_accuracy", model=label)
