import numpy as np
import pytest

from alignlab.data.batching.plan import plan_epoch, plan_step
from alignlab.data.settings import PlanSettings

LENGTHS = np.random.default_rng(0).integers(5, 60, 37)


def settings(**changes):
    base = {
        "global_batch_size": 8,
        "batch_size_per_device": 3,
        "max_tokens_per_micro_batch": None,
        "order": "shuffled",
        "order_column": None,
        "seed": 1,
    }
    return PlanSettings(**{**base, **changes})


@pytest.mark.parametrize("order", ["shuffled", "as_is", "by_length", "curriculum"])
def test_an_epoch_takes_every_row_once(order):
    steps = plan_epoch(LENGTHS, settings(order=order, order_column="level"), 0, keys=LENGTHS)
    assert sorted(np.concatenate(steps).tolist()) == list(range(37))
    assert sorted(map(len, steps)) == [5, 8, 8, 8, 8]


def test_orders_mean_what_they_say():
    as_is = np.concatenate(plan_epoch(LENGTHS, settings(order="as_is"), 0))
    assert as_is.tolist() == list(range(37))
    rising = np.concatenate(plan_epoch(LENGTHS, settings(order="curriculum"), 0, keys=-LENGTHS))
    assert np.all(np.diff(LENGTHS[rising]) <= 0)
    for step in plan_epoch(LENGTHS, settings(order="by_length"), 0):
        assert np.all(np.diff(LENGTHS[step]) >= 0)
    first, second = (np.concatenate(plan_epoch(LENGTHS, settings(), epoch)) for epoch in (0, 1))
    assert first.tolist() != second.tolist()
    again = np.concatenate(plan_epoch(LENGTHS, settings(), 0))
    assert first.tolist() == again.tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 70])
def test_a_step_holds_every_row_once_within_the_limits(num_ranks, limit):
    lengths = LENGTHS[:17]
    plan = settings(max_tokens_per_micro_batch=limit)
    ranks = plan_step(lengths, plan, num_ranks)
    counted = [row for rank in ranks for batch in rank if batch.counted for row in batch.rows]
    assert sorted(counted) == list(range(17))
    assert len({len(rank) for rank in ranks}) == 1
    for rank in ranks:
        for batch in rank:
            assert len(batch.rows) <= 3
            assert limit is None or len(batch.rows) == 1 or lengths[list(batch.rows)].sum() <= limit


def test_ranks_carry_about_the_same_tokens():
    lengths = np.random.default_rng(1).lognormal(4, 1, 64).astype(int) + 1
    ranks = plan_step(lengths, settings(batch_size_per_device=8), 2)
    loads = [sum(lengths[list(batch.rows)].sum() for batch in rank) for rank in ranks]
    assert max(loads) / min(loads) < 1.1


def test_a_short_step_is_filled_up_with_rows_that_do_not_count():
    ranks = plan_step([10, 20, 30], settings(), 4)
    fillers = [batch for rank in ranks for batch in rank if not batch.counted]
    assert len(fillers) == 1
    assert fillers[0].rows == (0,)


def test_a_row_beyond_the_token_limit_goes_alone():
    (batches,) = plan_step([500, 3, 4], settings(max_tokens_per_micro_batch=10), 1)
    assert {batch.rows for batch in batches} == {(0,), (1, 2)}


def test_rows_that_fill_the_token_limit_exactly_share_a_micro_batch():
    (batches,) = plan_step([4, 6, 3, 7], settings(max_tokens_per_micro_batch=10), 1)
    assert {batch.rows for batch in batches} == {(0, 1), (2, 3)}


def test_no_more_micro_batches_than_the_rows_need():
    """Two of 10 tokens would hold the 18, but no two rows fit together."""
    (batches,) = plan_step([6, 6, 6], settings(max_tokens_per_micro_batch=10), 1)
    assert [batch.counted for batch in batches] == [1, 1, 1]
