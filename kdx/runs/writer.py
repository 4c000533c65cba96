"""The result files of a finished run or teacher."""

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from kdx.device.machine import commit, now, peak_rss_bytes
from kdx.measure import Measurements
from kdx.measure.latency import write_latency
from kdx.measure.sparsity import write_layers
from kdx.runs.folder import RunFolder
from kdx.runs.reader import check_seal
from kdx.runs.sanity import sanity_warnings
from kdx.storage.checksums import FORMAT
from kdx.storage.files import write_csv
from kdx.training.checkpoint import Progress


def write_results(
    folder: RunFolder,
    names: Mapping[str, Any],
    seed: int,
    measured: Measurements,
    progress: Progress,
    figures: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> None:
    """Write the tables of a finished folder; `metrics.json` is written last, because it marks the run as finished.

    `names` say what the run is, `figures` are those that only its procedure knows, `machine` is `Backend.record`.
    Among the metrics `epochs` are those that were trained, in all fits; `best_epoch` is the one whose weights were
    taken, where that is not the last.
    """
    path = folder.path
    write_layers(path / "layers.csv", measured.layers)
    write_latency(path / "latency.csv", measured.latencies)
    columns = dict.fromkeys(key for row in progress.history for key in row)
    write_csv(path / "history.csv", list(columns), progress.history)
    figures = {**measured.figures, **figures}
    stopped = {} if progress.best_epoch is None else {"best_epoch": progress.best_epoch}
    folder.write_metrics(
        {
            "format": FORMAT,
            **names,
            "seed": seed,
            "epochs": len(progress.history),
            **stopped,
            **figures,
            "train_seconds": progress.seconds,
            # A chain whose first generation is rejected ends with the teacher, which may come from a checkpoint.
            "seconds_per_epoch": median(row["seconds"] or 0.0 for row in progress.history)
            if progress.history
            else None,
            **machine,
            **progress.execution(),
            "commit": commit(),
            "finished_at": now(),
            "peak_rss_bytes": peak_rss_bytes(),
            **({"warnings": " ".join(warned)} if (warned := sanity_warnings({**names, **figures})) else {}),
        }
    )
    for checkpoint in path.glob("checkpoint*.safetensors"):
        checkpoint.unlink()


def read_history(folder: Path) -> list[dict[str, float | None]]:
    """The rows of a finished folder's `history.csv`, with numbers parsed and None for empty cells."""
    check_seal(folder / "history.csv")
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | None:
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)
