"""A plain network as a torch.export file for any batch size, without any pickle in it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from kdx.errors import UserError
from kdx.storage.files import write_atomically


@contextmanager
def without_torchs_own_warnings() -> Iterator[None]:
    """Hide what torch 2.11 warns of when it exports (its use of LeafSpec) and reads archives (a buffer)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield


def save_program(path: Path, network: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Write `network`: float32 images (batch, C, H, W) to logits (batch, classes), atomically."""
    # Two images, because torch takes a dimension of 1 for a constant.
    example = (torch.zeros(2, *image_shape),)
    with without_torchs_own_warnings():
        program = torch.export.export(network, example, dynamic_shapes=({0: Dim.DYNAMIC},))
    # Example inputs are the one thing that torch would pickle.
    program.example_inputs = None  # type: ignore[assignment]

    def write(temporary: Path) -> None:
        # Through an open file, because torch insists on a certain suffix of a path.
        with temporary.open("wb") as file, without_torchs_own_warnings():
            torch.export.save(program, file)

    write_atomically(path, write)


def load_program(path: Path) -> ExportedProgram:
    """Read a file of `save_program`; raises UserError if it is missing, damaged, or contains a pickle.

    torch.export.load alone would read pickles, and would not notice changed weights.
    """
    try:
        with ZipFile(path) as archive:
            changed = archive.testzip()
            pickled = [entry.filename for entry in archive.infolist() if _may_be_pickle(archive, entry.filename)]
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; allowed: a file written by kdx export RUN format=torch"
        ) from None
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged: {error}; export it again") from None
    if changed is not None:
        raise UserError(f"{path} is damaged: {changed} does not match its checksum; export it again")
    if pickled:
        raise UserError(f"{path}: {pickled[0]} holds a pickle, which is not read; allowed: a file without")
    with path.open("rb") as file, without_torchs_own_warnings():
        return torch.export.load(file)


def _may_be_pickle(archive: ZipFile, name: str) -> bool:
    if name.endswith("config.json"):
        return b'"use_pickle": true' in archive.read(name).replace(b'":true', b'": true')
    # Example inputs and, in other archives, whatever torch.save wrote.
    return name.endswith((".pt", ".pkl")) and archive.getinfo(name).file_size > 0
