"""The validation before training is the point of every curve at step 0."""

import pytest

from alignlab.callbacks.first_validation import LogFirstValidation
from alignlab.run_folder.metrics_file import MetricsFile, read_metrics
from tests.callbacks.toy import newest, train


def steps(folder, num_steps, *, resume=None, **options):
    """Steps with held-out values in the table of a run with a validation every 4 steps."""
    logger = MetricsFile(path=folder / "metrics.csv", first_step=resume.step if resume else 0)
    train(folder, num_steps, every=4, resume=resume, callbacks=[LogFirstValidation()], loggers=[logger], **options)
    return [row["progress/step"] for row in read_metrics(logger.path) if "val/loss" in row]


def test_it_is_logged_once_also_where_the_run_is_resumed_or_begun_again(tmp_path):
    assert steps(tmp_path, 4) == [0, 4]
    assert steps(tmp_path, 8, resume=newest(tmp_path)) == [0, 4, 8]
    assert steps(tmp_path, 4) == [0, 4]


@pytest.mark.parametrize("num_batches", [0, 1])
def test_a_part_of_the_held_out_rows_is_no_point_of_the_same_curve(tmp_path, num_batches):
    assert steps(tmp_path, 4, num_sanity_val_steps=num_batches) == [4]
