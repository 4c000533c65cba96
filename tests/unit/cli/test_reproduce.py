"""What the words of `kdx reproduce` ask for: tables, rows, settings, and the folder that the result has."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.excerpt import ORDER

from kdx.cli.reproduce import folder_of, parsed, reproduce
from kdx.errors import UserError
from kdx.reproduce.jobs import Request, jobs_of
from kdx.reproduce.tables import load_table


def test_words():
    names, order = parsed(["vs/table1", "noisy", "seeds=2", "budget=smoke", "trainer.epochs=1", "train=false"])
    assert names == ["vs/table1", "noisy"]
    assert order == Request("*", 2, "smoke", ("trainer.epochs=1",), train=False)
    assert folder_of("vs/table1", replace(order, overrides=())) == Path("outputs/paper/vs/table1-smoke")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("outputs=there",), "there/paper/vs/table1"),
        # As Hydra reads it.
        (("outputs='o 2'",), "o 2/paper/vs/table1"),
        (("outputs=${oc.env:ELSEWHERE}",), "some/where/paper/vs/table1"),
        # What is no part of a run's id makes no other table.
        (
            ("device=cpu", "device.threads=1", "dataset.root=data", "trainer.checkpoint_seconds=1"),
            "outputs/paper/vs/table1",
        ),
    ],
)
def test_where_a_table_is_written(words: tuple[str, ...], folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ELSEWHERE", "some/where")
    order = replace(ORDER, overrides=words)
    assert folder_of("vs/table1", order) == Path(folder)
    assert not order.changes


def test_other_settings_have_a_folder_of_their_own():
    changed = replace(ORDER, overrides=("device=cpu", "trainer.epochs=5", "teacher2=nin"))
    assert changed.changes == ("trainer.epochs=5", "teacher2=nin")
    folders = {
        folder_of("vs/table1", each)
        for each in (
            changed,
            replace(changed, overrides=("teacher2=nin", "trainer.epochs=5")),
            replace(changed, overrides=("trainer.epochs=6",)),
            replace(changed, budget="smoke"),
            ORDER,
        )
    }
    assert len(folders) == 4
    assert all(folder.parent == Path("outputs/paper/vs") for folder in folders)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "reproduce: no table is given; allowed: "),
        (["vs", "seeds=0"], "seeds: '0' is not allowed; allowed: a whole number from 1 to 100"),
        (["vs", "seeds=two"], "seeds: 'two' is not allowed"),
        (["vs", "budget=smok"], "budget: 'smok' is not known; did you mean 'smoke'? allowed: paper, short, smoke"),
        (["vs", "train=no"], "train: 'no' is not known; allowed: false, true"),
        (["vs", "force=true"], "force=true: finished runs are never repeated here; allowed: kdx train"),
        (["vs", "seed=3"], "seed=3: the seeds are those of every row; allowed: seeds=N for seed=0 to N-1"),
    ],
)
def test_wrong_words(words: list[str], message: str):
    with pytest.raises(UserError) as caught:
        parsed(words)
    assert str(caught.value).startswith(message)


def test_rows_to_train_are_chosen_by_a_pattern():
    order = replace(ORDER, rows="*-VBD", train=True)
    assert [order.trains(row) for row in ("Le-L-ST-VBD", "Le-L-ST-SVD", "VBD")] == [True, False, False]
    assert not replace(order, train=False).trains("Le-L-ST-VBD")
    with pytest.raises(UserError, match=r"^rows: 'Le-L-ST-SDV' is not known; did you mean 'Le-L-ST-SVD'"):
        reproduce(["vs/table1", "rows=Le-L-ST-SDV"])


def test_an_override_that_no_run_has_is_refused():
    with pytest.raises(UserError, match=r"^trainer\.epoch=1: unknown key; did you mean 'trainer\.epochs'"):
        jobs_of(load_table("vs/table1"), replace(ORDER, overrides=("trainer.epoch=1",)))
