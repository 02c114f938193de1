"""The loader: all epochs in one sequence, resumable anywhere, shuffled streams."""

import numpy as np
import pytest
import torch

from alignlab.data.batching.steps import shuffle_stream, stream_steps, table_steps
from alignlab.data.settings import PlanSettings
from alignlab.errors import InputError
from tests.methods.toy import Rows, make_loader, make_rows

SETTINGS = {
    "global_batch_size": 8,
    "batch_size_per_device": 4,
    "max_tokens_per_micro_batch": None,
    "order": "shuffled",
    "order_column": None,
    "seed": 1,
}


def settings(**changes):
    return PlanSettings(**{**SETTINGS, **changes})


def labels(steps):
    return [[batch.labels.tolist() for batch in step.micro_batches] for step in steps]


def take(plan, count):
    return [next(plan) for _ in range(count)]


@pytest.mark.parametrize("done", range(1, 6))
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_where_its_state_was_taken(done, workers):
    whole = labels(make_loader(make_rows(), 3, num_steps=6))
    first = make_loader(make_rows(), 3, num_steps=6, workers=workers)
    steps = iter(first)
    take(steps, done)
    second = make_loader(make_rows(), 3, num_steps=6, workers=workers)
    second.load_state_dict(first.state_dict())
    assert labels(second) == whole[done:]


def test_a_loader_for_validation_begins_with_the_first_step_each_time():
    """Also after an iteration that was left."""
    loader = make_loader(make_rows(), 3, num_steps=2)
    loader.resumable = False
    take(iter(loader), 1)
    assert labels(loader) == labels(loader) == labels(make_loader(make_rows(), 3, num_steps=2))


def test_a_loader_draws_nothing_from_the_global_generators():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    list(make_loader(make_rows(), 3, num_steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_epoch_takes_every_row_once_in_another_order():
    steps = take(table_steps(make_rows(), settings(), 0, 1, 0), 4)
    epochs = [[row.origin for step in pair for row in step.rows] for pair in (steps[:2], steps[2:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row.origin for row in make_rows())
    assert epochs[0] != epochs[1]
    assert [step.epoch for step in steps] == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("order", ["shuffled", "as_is"])
def test_a_stream_goes_through_its_rows_again_and_resumes_anywhere(order):
    plan = settings(order=order)
    whole = take(stream_steps(lambda: iter(make_rows()), plan, 0, 1, 0), 5)
    assert [(len(step.rows), step.epoch) for step in whole] == [(8, 0.0), (5, 1.0), (8, 1.0), (5, 2.0), (8, 2.0)]
    assert sorted(row.origin for step in whole[:2] for row in step.rows) == sorted(r.origin for r in make_rows())
    resumed = take(stream_steps(lambda: iter(make_rows()), plan, 0, 1, 3), 2)
    assert [[r.origin for r in step.rows] for step in resumed] == [[r.origin for r in step.rows] for step in whole[3:]]
    in_order = [row.origin for row in whole[0].rows] == [row.origin for row in make_rows()[:8]]
    assert in_order == (order == "as_is")


def test_the_last_full_step_of_a_stream_ends_its_epoch():
    steps = take(stream_steps(lambda: iter(make_rows()[:8]), settings(global_batch_size=4), 0, 1, 0), 4)
    assert [(len(step.rows), step.epoch) for step in steps] == [(4, 0.0), (4, 1.0), (4, 1.0), (4, 2.0)]


def test_ranks_share_the_rows_of_a_step():
    ranks = [next(table_steps(make_rows(), settings(), rank, 2, 0)) for rank in range(2)]
    assert [r.origin for r in ranks[0].rows] == [r.origin for r in ranks[1].rows]
    places = [place for planned in ranks for batch in planned.micro_batches for place in batch.rows]
    assert sorted(places) == list(range(8))


def test_a_shuffle_buffer_loses_nothing():
    shuffled = list(shuffle_stream(iter(range(100)), np.random.default_rng(0), size=10))
    assert sorted(shuffled) == list(range(100))
    assert shuffled != list(range(100))


def test_a_curriculum_needs_its_column():
    with pytest.raises(InputError, match="row 0 has no number of that name"):
        next(table_steps(Rows(make_rows()), settings(order="curriculum", order_column="level"), 0, 1, 0))


def test_a_rank_without_a_row_gets_a_filler_that_does_not_count():
    steps = [next(iter(make_loader(make_rows(1), 4, num_steps=1, rank=rank, num_ranks=2))) for rank in range(2)]
    assert [[batch.counted for batch in step.micro_batches] for step in steps] == [[1], [0]]
    assert [step.totals.rows for step in steps] == [1, 1]
