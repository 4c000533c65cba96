"""The student of a finished run, and networks from files whose layer widths differ from the configured ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from kdx.config.networks import NetworkSettings, RefinedSettings, network_of
from kdx.config.schema import Config
from kdx.config.validation import error_message
from kdx.data import load_data
from kdx.data.dataset import Data
from kdx.errors import UserError, one_line
from kdx.models import Shape, build_model
from kdx.models.ensemble import Ensemble
from kdx.models.surgery import resize_like, with_used_inputs
from kdx.runs.reader import Figures, check_seal, read_figures
from kdx.storage.tensors import DamagedTensors, load_tensors, load_weights, save_tensors

SHRUNK = "kdx-shrunk-1"


@dataclass(frozen=True)
class Student:
    """A finished run: its figures, configuration and data, and its plain student, on the CPU in eval mode."""

    run: Path
    figures: Figures
    config: Config
    data: Data
    network: nn.Module

    @property
    def settings(self) -> NetworkSettings:
        """The settings that the student was built from."""
        assert not isinstance(self.config.student, RefinedSettings), "a chain has no student of its own"
        return self.config.student


def finished_student(run: Path) -> Student:
    """Load the student of the finished run in folder `run`; raises UserError if a file is missing or does not fit."""
    figures, config = read_figures(run), _read_config(run)
    if isinstance(config.student, RefinedSettings):
        raise UserError(f"run: {run} is a chain of runs; allowed: the run of one of them, which its chain.csv lists")
    data = load_data(config.dataset)
    check_seal(run / "student.safetensors")
    network = _read_network(run / "student.safetensors", config.student, data.image_shape, data.classes)
    return Student(run, figures, config, data, network)


def save_shrunk(path: Path, network: nn.Module, student: Student) -> None:
    """Write the smaller `network` of `student`, with all that is needed to build it again, atomically."""
    settings = student.settings.model_dump(mode="json", exclude={"checkpoint"})
    shape = {"image_shape": list(student.data.image_shape), "classes": student.data.classes}
    save_tensors(path, network.state_dict(), {"format": SHRUNK, "network": settings, **shape})


def load_shrunk(path: Path) -> nn.Module:
    """Read a file of `kdx export RUN format=shrink`: a plain network on the CPU; raises UserError if it is damaged."""
    tensors, header = _read_tensors(path)
    if header.get("format") != SHRUNK:
        raise UserError(f"{path}: not a shrunk network; allowed: a file written by kdx export RUN format=shrink")
    try:
        settings = network_of(header["network"], NetworkSettings, "network")
    except UserError as error:
        raise UserError(f"{path}: made by another version of kdx or of a package: {one_line(error)}") from None
    channels, height, width = header["image_shape"]
    blank = blank_network(settings, (channels, height, width), header["classes"], tensors)
    return load_weights(path, blank).eval()


def blank_network(
    settings: NetworkSettings, image_shape: Shape, classes: int, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """A network of `settings` in eval mode with the widths, ensemble members and selected inputs of `tensors`."""
    members = {name.partition(".")[0] for name in tensors if name.startswith("member")}

    def single(prefix: str) -> nn.Sequential:
        network = build_model(settings, image_shape, classes, seed=0)
        used = tensors.get(f"{prefix}used_inputs.indices")
        first = next((name for name, layer in network.named_children() if isinstance(layer, nn.Linear)), None)
        return network if used is None or first is None else with_used_inputs(network, first, used)

    network = Ensemble([single(f"member{number}.") for number in range(1, len(members) + 1)]) if members else single("")
    return resize_like(network, tensors).eval()


def _read_config(run: Path) -> Config:
    path = run / "config.yaml"
    check_seal(path)
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"run: {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        reason = one_line(error_message(error, model=Config))
        raise UserError(
            f"run: {path} was written by another version of kdx or of a package: {reason}; repeat the run"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"run: {path} is damaged: it is not YAML; repeat the run with force=true") from None


def _read_network(path: Path, settings: NetworkSettings, image_shape: Shape, classes: int) -> nn.Module:
    # The file decides the structure, since a method may have removed neurons (kddp) or made an ensemble (sgld).
    tensors, _ = _read_tensors(path)
    network = load_weights(path, blank_network(settings, image_shape, classes, tensors)).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *image_shape))
    except RuntimeError as error:
        raise UserError(f"{path}: made for another network than its run: {one_line(error)}") from None
    return network


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; allowed: a .safetensors file of kdx") from None
    except DamagedTensors as error:
        raise UserError(str(error)) from error
