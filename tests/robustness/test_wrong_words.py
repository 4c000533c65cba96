"""Wrong command lines: exit code 2, and one line that names what is wrong, whatever is typed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.forked import Ended
from helpers.hurt import run
from helpers.typed import flat, misspelt

from kdx.config.compose import compose_config

METHODS = ("vanilla", "kd-dropout", "st-vbd", "noisy", "kddp", "ikd", "ip", "prune", "sgld", "bdk", "bc", "soft-labels")
NO_NUMBER = ("abc", "nan", "inf", "-inf", "[1,[2]]", "{a:1}", "1e999", "''", "true")
# Texts that may be anything.
FREE = {"outputs", "dataset.root", "sweep.name", "method.name", "method.procedure", "method.parts", "method.layer"}
# Numbers that may be negative.
SIGNED = {"log_sigma2_init", "threshold", "seed", "split_seed", "gap"}
CONTRADICTIONS = (
    ("method=vanilla", "method.T=4"),
    ("method=vanilla", "method.lambda_g=1"),
    ("method=kd", "method.lambda_V=1"),
    ("method=vanilla", "teacher2=lenet5-caffe"),
    ("method=st-vbd", "teacher2=lenet5-caffe"),
    ("trainer.patience=3", "dataset.validation=0"),
    ("dataset.validation=100000",),
    ("dataset.train_size=100000",),
    ("dataset=mnist", "dataset.mirror=random"),
    ("dataset=cifar10", "dataset.shift=32"),
    ("dataset=digits", "dataset.preprocessing=local-contrast"),
    ("method=ikd", "student=lenet-300-100"),
    ("method=ikd", "method.generations=20"),
    ("method=ikd", "method.tolerance=1", "dataset.validation=0"),
    ("method=kd", "student=refined"),
    ("method=prune", "method.sparsity=null"),
    ("method=prune", "method.sparsity=0.5", "method.tolerance=1"),
    ("method=ip", "method.keep=null", "method.q=null"),
    ("method=ip", "method.keep=0.1", "method.q=1"),
    ("method=sgld", "method.samples=1000"),
    ("method=bc", "method.threshold=[1,2]"),
    ("method=kddp", "method.layer=fc9"),
    ("teacher.checkpoint=/no/such/file.safetensors",),
    ("student.checkpoint=/no/such/file.safetensors",),
    ("teacher.checkpoint=/etc/passwd",),
    ("dataset=mnist", "dataset.root=/no/such/folder", "dataset.download=false"),
    ("dataset=cifar10", "dataset.root=/no/such/folder", "dataset.download=false"),
    ("dataset=svhn", "dataset.root=/no/such/folder", "dataset.download=false"),
    ("device=cuda",),
    ("device.precision=tf32", "device=cpu"),
    ("student=vgg19", "student.width=0"),
    ("student=lenet5-caffe", "student.channels=[]"),
    ("student=nin", "student.layers=[C3]"),
    ("student=nin", "student.layers=[__import__('os')]"),
)
SYNTAX = (
    *("method=", "=3", "method={", "method=[kd", "++x=1", "+foo=1", "~method", "method", "a b", "method==kd", "$(ls)"),
    *(
        "method.T='",
        "trainer.lr=${oc.env:HOME}x",
        "trainer.lr=${nothing}",
        "method@student=kd",
        "-x",
        "--foo",
        "seed=1,2",
    ),
    *("\x00=1", "méthode=kd", "trainer..lr=1", ".=1", "trainer=", "trainer.=1", "method/x=1", "hydra.run.dir=/tmp/x"),
    *("_target_=os.system", "trainer._target_=os.system", "method._partial_=true", "hydra=none", "hydra.mode=RUN"),
)
OTHERS = (
    *("table", "table nothing", "table /", "table -x", "export", "export x format=csr", "export format=csr"),
    *("bench", "bench x seconds=0", "bench x seconds=nan", "bench --fast", "plot", "plot mnist", "plot x y=1 z=2"),
    *("report /no/such/folder", "report a b", "reproduce", "reproduce vs/table9", "reproduce --al"),
    *("reproduce vs/table1 seeds=0", "reproduce vs/table1 budget=big", "reproduce vs/table1 rows=nobody"),
    *("reproduce seeds=3", "reproduce vs/table1 seed=3", "reproduce vs/table1 train=perhaps"),
    *("reproduce vs/table1 seeds=1 seeds=2", "tarin", "--help-me", "method=kd", "train -n", "-1"),
    *("train -m", "train -m sweep.name=x", "train -m hydra/launcher=joblib", "train -m seed=1 seed=2,3"),
    *("train -m method=kd,kdd", "train -m seed=", "train -m hydra/launcher=condor", "train -m seed=range(0)"),
)


def test_wrong_command_lines_are_refused_in_one_line(
    tmp_path: Path, chance: random.Random, blows: Callable[[int], int], figures: Callable[..., None]
) -> None:
    lines, count = list(_fixed()), blows(30)
    # Some of each kind, in whatever order they are written above.
    lines = chance.sample(lines, count // 2) if len(lines) > count // 2 else lines
    generated = _generated(chance)
    lines += [next(generated) for _ in range(count - len(lines))]
    failures = []
    for number, (words, key) in enumerate(lines):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if why := _wrong(run([words], folder), key):
            failures.append(f"kdx {' '.join(words)}: {why}")
    refused = len(lines) - len(failures)
    figures("words", command_lines=len(lines), refused=refused, failures=failures)


def _wrong(ended: Ended, key: str) -> str:
    """What is wrong with the way a wrong command line was refused; empty where nothing is."""
    if why := ended.wrong():
        return why
    if ended.code != 2:
        return f"exit code {ended.code}: {ended.err[-300:]}"
    lines = ended.err.strip().splitlines()
    if len(lines) != 1 or not lines[0].startswith("kdx: "):
        return f"{len(lines)} lines: {ended.err[-300:]}"
    return "" if key in lines[0] else f"it does not name {key}: {lines[0]}"


def _fixed() -> Iterator[tuple[list[str], str]]:
    train = ["train", "dataset=digits"]
    for words in CONTRADICTIONS:
        yield [*(train if not words[0].startswith("dataset=") else ["train"]), *words], ""
    for word in SYNTAX:
        yield [*train, word], ""
    for line in OTHERS:
        yield line.split(), ""
    yield [""], ""


def _generated(chance: random.Random) -> Iterator[tuple[list[str], str]]:
    settings = {
        method: dict(flat(compose_config(["dataset=digits", f"method={method}"]).model_dump(), ""))
        for method in METHODS
    }
    while True:
        method = chance.choice(METHODS)
        key, value = chance.choice(sorted(settings[method].items(), key=lambda item: item[0]))
        train = ["train", "dataset=digits", f"method={method}"]
        if chance.random() < 0.4:
            wrong = misspelt(chance, key)
            if wrong not in settings[method]:
                yield [*train, f"{wrong}=1"], wrong.rpartition(".")[2]
            continue
        if key in FREE or key.startswith("sweep") or key.rpartition(".")[2] in ("name", "family", "head"):
            continue
        word = _bad_value(chance, key, value)
        if word is not None:
            yield [*train, f"{key}={word}"], key.rpartition(".")[2]


def _bad_value(chance: random.Random, key: str, value: Any) -> str | None:
    """A value that this key cannot have, judged by the one that it has."""
    last = key.rpartition(".")[2]
    if isinstance(value, bool):
        return chance.choice(("perhaps", "2", "[true]", "nan"))
    if isinstance(value, int | float):
        choices = list(NO_NUMBER)
        choices += ["-7"] if last not in SIGNED else []
        choices += ["1.5"] if isinstance(value, int) and last in ("seed", "epochs", "batch_size", "iterations") else []
        return chance.choice(choices)
    if isinstance(value, list) and value and isinstance(value[0], int | float):
        return chance.choice(("abc", "[a]", "[-1]", "[nan]", "[[1]]", "-3"))
    if isinstance(value, str):
        return chance.choice(("nonsense", "[1]", "{a:1}"))
    return None
