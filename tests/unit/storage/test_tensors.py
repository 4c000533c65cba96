"""Weights files: whole, or a mistake that is told in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.miniature import convolutional, perceptron
from safetensors.torch import save_file
from torch import nn

from kdx.errors import UserError
from kdx.storage.tensors import DamagedTensors, load_tensors, load_weights, save_tensors, save_weights


def refused(path: Path, blank: nn.Module) -> str:
    """The message of the refusal; the network is as it was."""
    before = {name: value.clone() for name, value in blank.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(path, blank)
    assert all(torch.equal(value, before[name]) for name, value in blank.state_dict().items())
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_what_is_saved_is_loaded(tmp_path: Path, build: Callable[..., nn.Module]):
    saved = build(seed=1)
    save_weights(tmp_path / "w", saved)
    loaded = load_weights(tmp_path / "w", build(seed=2))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())


def test_the_file_and_the_network_share_no_memory(tmp_path: Path):
    network = perceptron()
    save_weights(tmp_path / "w", network)
    load_weights(tmp_path / "w", network)
    before = (tmp_path / "w").read_bytes()
    with torch.no_grad():
        network.fc1.weight.zero_()
    assert (tmp_path / "w").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: b"\x80\x04pickle" + whole],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]):
    path = tmp_path / "w.safetensors"
    save_weights(path, perceptron())
    path.write_bytes(damage(path.read_bytes()))
    assert "is damaged" in refused(path, perceptron())


def test_weights_from_another_program_are_read(tmp_path: Path):
    network = perceptron(seed=1)
    save_file(network.state_dict(), tmp_path / "w")
    loaded = load_weights(tmp_path / "w", perceptron(seed=2))
    assert torch.equal(loaded.state_dict()["fc1.weight"], network.state_dict()["fc1.weight"])


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path):
    refused(tmp_path / "absent", perceptron())
    refused(tmp_path, perceptron())


def test_another_width_is_refused_and_named(tmp_path: Path):
    save_weights(tmp_path / "w", perceptron(hidden=6))
    message = refused(tmp_path / "w", perceptron(hidden=5))
    assert "made for another network: 'fc" in message
    assert "there" in message


def test_another_architecture_is_refused(tmp_path: Path):
    save_weights(tmp_path / "w", convolutional())
    assert "made for another network" in refused(tmp_path / "w", perceptron())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("fc2.bias"), "'fc2.bias' is absent there, (4,) here"),
        (lambda state: state.update(extra=torch.zeros(2)), "'extra' is (2,) there, absent here"),
    ],
)
def test_a_missing_and_a_surplus_tensor_are_named(tmp_path: Path, change, named: str):
    state = dict(perceptron().state_dict())
    change(state)
    save_file(state, tmp_path / "w")
    assert named in refused(tmp_path / "w", perceptron())


def test_no_truncation_and_no_flipped_bit_gets_through(tmp_path: Path):
    path, tensors, header = tmp_path / "t", {"a": torch.arange(5.0), "b": torch.tensor([1, 2])}, {"made": "here"}
    save_tensors(path, tensors, header)
    intact, unnoticed = path.read_bytes(), 0
    for length in range(0, len(intact), 7):
        path.write_bytes(intact[:length])
        with pytest.raises(DamagedTensors):
            load_tensors(path)
    for at in range(len(intact)):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1 << at % 8]) + intact[at + 1 :])
        try:
            found, told = load_tensors(path)
        except DamagedTensors:
            continue
        unnoticed += 1
        # Without our entry it is a file from elsewhere, which has no header; who looks for one refuses it.
        assert told in (header, {})
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    # A flip in the padding harms nothing.
    assert unnoticed < 0.1 * len(intact)
