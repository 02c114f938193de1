"""metrics.csv: one row per optimizer step, columns that grow, rows cut on resume."""

import math
import os
import signal

import pytest
import torch

from alignlab.errors import InputError
from alignlab.run_folder.metrics_file import MetricsFile, read_metrics
from alignlab.system.processes import Stopped
from tests.callbacks.toy import Toy, newest, train


def log(file, *steps):
    for step, values in steps:
        file.log_metrics(values | {"epoch": 0}, step=step - 1)


def test_parts_of_a_step_are_one_row_and_columns_join_later(tmp_path):
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    log(file, (1, {"train/loss": 2.0}), (2, {"train/loss": 1.5}), (2, {"val/loss": 1.75}), (3, {"train/loss": 1.25}))
    text = "progress/step,train/loss,val/loss\n1,2,\n2,1.5,1.75\n3,1.25,\n"
    assert (tmp_path / "metrics.csv").read_text() == text
    assert read_metrics(tmp_path / "metrics.csv")[1] == {"progress/step": 2, "train/loss": 1.5, "val/loss": 1.75}


def test_the_logged_axis_wins_over_lightnings_count(tmp_path):
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    file.log_metrics({"progress/step": 41.0, "train/loss": 1.0}, step=0)
    assert read_metrics(tmp_path / "metrics.csv") == [{"progress/step": 41, "train/loss": 1}]


@pytest.mark.parametrize("value", [1 / 3, 1e-30, 123456789012.0, float(torch.tensor(0.1)), math.inf])
def test_values_survive(tmp_path, value):
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    log(file, (1, {"train/loss": value}))
    assert read_metrics(file.path)[0]["train/loss"] == pytest.approx(value, rel=1e-8)


def test_rows_after_the_checkpoint_are_cut_and_a_half_row_is_passed_over(tmp_path):
    path = tmp_path / "metrics.csv"
    log(
        MetricsFile(path=path, first_step=0),
        *((step, {"train/loss": step / 4, "train/lr": 1.0}) for step in range(1, 6)),
    )
    path.write_text(path.read_text() + "6,0.")
    assert len(read_metrics(path)) == 5
    resumed = MetricsFile(path=path, first_step=3)
    log(resumed, (4, {"train/loss": 9.0}), (5, {"train/loss": 9.0, "val/loss": 3.0}))
    assert [row.get("train/loss") for row in read_metrics(path)] == [0.25, 0.5, 0.75, 9, 9]
    assert read_metrics(path)[4]["val/loss"] == 3


WHOLE = "progress/step,train/loss\n1,2\n2,3\n"
DAMAGED = {
    "empty": (b"", []),
    "only a header": (b"progress/step,train/loss\n", []),
    "other columns": (b"epoch,loss\n1,2\n", []),
    "words": (b"progress/step,train/loss\n1,2\ntwo,x\n", [1]),
    "too many cells": (b"progress/step,train/loss\n1,2,3\n2,3\n", [2]),
    "NaN steps": (b"progress/step,train/loss\nnan,2\n2,nan\n", [2]),
    "one bad byte": (WHOLE.replace("2,3", "2,\x00").encode() + b"3,\xff\n4,1\n", [1, 4]),
    "binary": (bytes(range(256)) * 9, []),
    "a huge cell": (WHOLE.encode() + b"3," + b"1" * 200_000 + b"\n4,1\n", [1, 2]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_keeps_the_rows_that_can_be_read_and_says_how_many_are_left_out(tmp_path, caplog, case):
    content, steps = DAMAGED[case]
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert [row["progress/step"] for row in read_metrics(path)] == steps
    resumed = MetricsFile(path=path, first_step=9)
    log(resumed, (10, {"train/lr": 1.0}))
    assert [row["progress/step"] for row in read_metrics(path)] == [*steps, 10]
    assert ("left out" in caplog.text) == (case not in ("empty", "only a header"))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is not a file"):
        MetricsFile(path=tmp_path, first_step=0)


def test_a_new_run_begins_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    log(MetricsFile(path=path, first_step=0), (0, {"val/nll": 1.0}), (1, {"train/loss": 1.0}))
    log(MetricsFile(path=path, first_step=0), (0, {"val/loss": 3.0}), (1, {"train/lr": 2.0}))
    assert read_metrics(path) == [{"progress/step": 0, "val/loss": 3}, {"progress/step": 1, "train/lr": 2}]


def run(folder, steps, *, resume=None, make=Toy):
    first_step = resume.step if resume else 0
    file = MetricsFile(path=folder / "metrics.csv", first_step=first_step)
    return train(folder, steps, every=5, resume=resume, make=make, loggers=[file])


def test_a_stopped_and_resumed_run_has_the_table_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 12)
    with pytest.raises(Stopped):
        run(
            tmp_path / "parts",
            12,
            make=lambda: Toy(on_step=lambda at: at == 7 and os.kill(os.getpid(), signal.SIGTERM)),
        )
    assert len(read_metrics(tmp_path / "parts" / "metrics.csv")) == 7
    run(tmp_path / "parts", 12, resume=newest(tmp_path / "parts"))
    assert (tmp_path / "parts" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert [row["progress/step"] for row in read_metrics(tmp_path / "whole" / "metrics.csv") if "val/loss" in row] == [
        4,
        8,
        12,
    ]
