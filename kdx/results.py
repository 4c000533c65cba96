"""The result files of a finished run or teacher."""

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from kdx.device import Engine
from kdx.files import write_csv
from kdx.fit import Plan
from kdx.machine import commit, now, peak_rss_bytes
from kdx.measure import Measurements
from kdx.measure.latency import write_latency
from kdx.measure.sparsity import write_layers
from kdx.procedures.procedure import Outcome
from kdx.report.finished import check_seal
from kdx.report.verdict import warnings_of
from kdx.seal import FORMAT


def write_results(
    plan: Plan, names: Mapping[str, Any], measured: Measurements, outcome: Outcome, engine: Engine
) -> None:
    """Write the tables of a finished folder; `metrics.json` is written last, because it marks the run as finished.

    `epochs` are the epochs trained in all fits; `best_epoch` is the one whose weights were kept, if it is not the last.
    """
    path, progress = plan.folder.path, outcome.progress
    write_layers(path / "layers.csv", measured.layers)
    write_latency(path / "latency.csv", measured.latencies)
    columns = dict.fromkeys(key for row in progress.history for key in row)
    write_csv(path / "history.csv", list(columns), progress.history)
    figures = {**names, **measured.figures, **outcome.figures}
    stopped = {} if progress.best_epoch is None else {"best_epoch": progress.best_epoch}
    plan.folder.write_metrics(
        {
            "format": FORMAT,
            **names,
            "seed": plan.seed,
            "epochs": len(progress.history),
            **stopped,
            **measured.figures,
            **outcome.figures,
            "train_seconds": progress.seconds,
            # A chain whose first generation is rejected ends with the teacher, which may come from a checkpoint.
            "seconds_per_epoch": median(row["seconds"] or 0.0 for row in progress.history)
            if progress.history
            else None,
            **engine.record(),
            **progress.execution(),
            "commit": commit(),
            "finished_at": now(),
            "peak_rss_bytes": peak_rss_bytes(),
            **({"warnings": " ".join(warned)} if (warned := warnings_of(figures)) else {}),
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
