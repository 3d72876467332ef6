# SPDX-License-Identifier: Apache-2.0
"""Which tasks are held out of training: by number, by fold, by name."""

from __future__ import annotations

import pytest

from spc_core.data.dataset import DatasetError
from spc_core.data.held_out import choose_held_out

TASKS = [f"point/train/{task:02d}" for task in range(8)]


@pytest.mark.parametrize(
    "asked, chosen",
    [
        ((), []),
        (("0",), []),
        (("1",), [4]),
        (("4",), [1, 3, 5, 7]),
        (("3",), [1, 4, 6]),
        (("1/4",), [0, 4]),
        (("3/3",), [2, 5]),
        ((TASKS[6], TASKS[2], TASKS[6]), [2, 6]),
    ],
)
def test_tasks_are_chosen_by_number_fold_or_name(asked: tuple[str, ...], chosen: list[int]) -> None:
    assert choose_held_out(asked, TASKS[::-1]) == tuple(TASKS[number] for number in chosen)


def test_every_task_is_in_one_fold_and_a_task_called_as_a_number_is_named() -> None:
    folds = [name for fold in range(1, 4) for name in choose_held_out((f"{fold}/3",), TASKS)]
    assert sorted(folds) == TASKS
    assert choose_held_out(("2",), ["1", "2", "3", "4"]) == ("2",)


@pytest.mark.parametrize(
    "asked, message",
    [
        (("7",), "--hold-out 7: keeps 7 of 8 tasks out of training; at least 2 must remain"),
        (("9",), "--hold-out 9: the dataset has 8 tasks; hold out fewer"),
        (("4/3",), "--hold-out 4/3: a fold is k/n with n at least 2 and k from 1 to n, such as 1/5"),
        (("1/1",), "a fold is k/n with n at least 2"),
        (("9/9",), "this fold of 8 tasks is empty; use fewer folds"),
        (("point/train/1", TASKS[0]), "'point/train/1' is no task of the dataset.*its 8 tasks: point/train/00, "),
        (("4", "5"), "--hold-out 4 5: give one number of tasks, one fold as 1/5, or task ids"),
        ((TASKS[0], "1/5"), "give one number of tasks, one fold as 1/5, or task ids"),
        (("half",), "'half' is no task of the dataset, nor a number of tasks or a fold"),
    ],
)
def test_what_cannot_be_held_out_is_refused(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        choose_held_out(asked, TASKS)
