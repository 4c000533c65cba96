"""The files of an export: read again they do what the network does, and damaged ones are refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch
from helpers.masks import assert_same_function, sparse
from helpers.miniature import normal, perceptron
from helpers.networks import CLASSES, IMAGE, SETTINGS, small
from torch import nn

from kdx.data.dataset import Split
from kdx.errors import UserError
from kdx.export.formats import FORMATS
from kdx.export.onnx_file import load_onnx
from kdx.export.shrink import shrink
from kdx.export.student import blank_network, load_shrunk
from kdx.export.torch_file import load_program
from kdx.export.verification import NotTheSame, verify
from kdx.models.ensemble import Ensemble
from kdx.models.neurons import hidden_layer, without_neurons


def student_of(family: str, network: nn.Module):
    """What the formats ask of a finished run's student."""
    data = SimpleNamespace(image_shape=IMAGE, classes=CLASSES)
    return SimpleNamespace(network=network, settings=SETTINGS[family], data=data)


def written(folder: Path, form: str, family: str) -> tuple[Path, nn.Module]:
    network = sparse(small(family))
    student = student_of(family, network)
    path = folder / f"student.{FORMATS[form].ending}"
    FORMATS[form].write(path, FORMATS[form].network(student, "fp32"), student, "fp32")
    return path, network


@pytest.mark.parametrize("family", ["mlp", "lenet", "vgg", "kddp"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_does_what_the_student_does(form: str, family: str, tmp_path: Path):
    path, network = written(tmp_path, form, family)
    run = FORMATS[form].read(path)
    for batch in (1, 2, 7):
        images = normal(batch, *IMAGE, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(run(images), network(images), atol=1e-5, rtol=1e-5)


# csr has tests of its own.
REFUSED: dict[str, Callable] = {form: how.read for form, how in FORMATS.items() if form != "csr"}


@pytest.mark.parametrize("form", REFUSED)
def test_a_damaged_file_is_refused_in_one_line(form: str, tmp_path: Path):
    path, network = written(tmp_path, form, "mlp")
    content = path.read_bytes()
    bias = content.index(shrink(network).fc2.bias.detach().numpy().tobytes())
    changed = content[:bias] + bytes([content[bias] ^ 1]) + content[bias + 1 :]
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], changed):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as refusal:
            REFUSED[form](path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    path.unlink()
    with pytest.raises(UserError, match="there is no such file"):
        REFUSED[form](path)


def test_a_pickle_in_an_archive_is_not_read(tmp_path: Path):
    path = tmp_path / "foreign.pt2"
    program = torch.export.export(perceptron(), (torch.zeros(2, 1, 6, 6),))
    with path.open("wb") as file:
        torch.export.save(program, file)
    with pytest.raises(UserError, match="holds a pickle, which is not read"):
        load_program(path)
    written(tmp_path, "torch", "mlp")
    with ZipFile(tmp_path / "student.pt2") as archive:
        assert not [entry for entry in archive.infolist() if entry.filename.endswith(".pt") and entry.file_size]


def test_an_onnx_file_from_elsewhere_is_refused(tmp_path: Path):
    path, _ = written(tmp_path, "onnx", "mlp")
    path.write_bytes(path.read_bytes().replace(b"kdx_sha256", b"xdk_sha256"))
    with pytest.raises(UserError, match="does not match its hash"):
        load_onnx(path)


def test_a_shrunk_file_is_a_smaller_network(tmp_path: Path):
    path, network = written(tmp_path, "shrink", "lenet")
    loaded = load_shrunk(path)
    assert str(loaded) == str(shrink(network))
    assert_same_function(loaded, network)


def test_a_network_that_lost_neurons_is_built_from_its_file():
    network = small("kddp")
    hidden = hidden_layer(network, "fc1")
    smaller = without_neurons(network, hidden, torch.tensor([True, False, True, False, True]))
    blank = blank_network(SETTINGS["kddp"], IMAGE, CLASSES, smaller.state_dict())
    assert str(blank) == str(smaller)
    blank.load_state_dict(smaller.state_dict())
    assert_same_function(blank, smaller.eval())


def test_an_ensemble_is_built_from_its_file():
    ensemble = Ensemble([small("mlp", seed) for seed in range(3)])
    blank = blank_network(SETTINGS["mlp"], IMAGE, CLASSES, ensemble.state_dict())
    assert {name: value.shape for name, value in blank.state_dict().items()} == {
        name: value.shape for name, value in ensemble.state_dict().items()
    }
    smaller = shrink(ensemble)
    assert_same_function(smaller, ensemble.eval())


def answers(network: nn.Module, change: float = 0.0):
    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = network(images)
        logits[0, 0] += change
        return logits

    return run


def test_verification_sees_one_wrong_logit():
    network = perceptron().eval()
    images = normal(20, 1, 6, 6, seed=1)
    with torch.no_grad():
        test = Split(images, network(images).argmax(dim=1))
    exact = verify(answers(network), network, network, test)
    assert (exact.test_error_percent, exact.student_test_error_percent, exact.logit_difference) == (0, 0, 0)
    with pytest.raises(NotTheSame, match=r"logits differ by 0\.01"):
        verify(answers(network, 0.01), network, network, test)
    with pytest.raises(NotTheSame, match="logits differ by nan"):
        verify(answers(network, float("nan")), network, network, test)
    with pytest.raises(NotTheSame, match="expected"):
        verify(lambda images: network(images).detach()[:, :2], network, network, test)


def test_verification_sees_another_decision():
    logits = torch.tensor([[1.0, 1.0 + 1e-6]])
    test = Split(torch.zeros(1, 1, 1, 1), torch.tensor([1]))
    exact = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        exact[1].bias.copy_(logits[0])
    with pytest.raises(NotTheSame, match=r"test error is 100\.0000 %, expected 0\.0000 %"):
        verify(lambda images: logits.flip(1), exact, exact, test)
