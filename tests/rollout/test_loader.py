"""The rollout loader: steps of a rollout, reuse, resuming within one."""

import numpy as np
import pytest
import torch

from alignlab.data.settings import PlanSettings
from alignlab.rollout.loader import LoaderSettings, RolloutLoader
from alignlab.types.rows import TokenRow


def make_loader(num_steps=12, num_iterations=2, steps_per_rollout=2, **ranks):
    plan = PlanSettings(
        global_batch_size=3,
        batch_size_per_device=2,
        max_tokens_per_micro_batch=None,
        order="shuffled",
        order_column=None,
        seed=1,
    )
    settings = LoaderSettings(
        plan=plan, steps_per_rollout=steps_per_rollout, num_iterations=num_iterations, packing=True, pad_token_id=0
    )

    def prompts(window):
        return [window * 100 + index for index in range(6)], float(window + 1)

    def produce(number, next_prompts):
        """A row per prompt whose completion spells the prompt's number; one is left out, as filters do."""
        rows = [
            TokenRow(
                torch.tensor([1, value, value + 1]),
                [False, True, True],
                [[1, 2]],
                "row",
                {"advantages": torch.tensor([0.5])},
            )
            for value in next_prompts()[: 6 - number % 2]
        ]
        return rows, {"reward/mean": float(number)}

    return RolloutLoader(
        prompts, produce, settings=settings, num_steps=num_steps, **({"rank": 0, "num_ranks": 1} | ranks)
    )


def labels(step):
    return sorted(torch.cat([batch.labels for batch in step.micro_batches if batch.counted])[::1].tolist())


def test_each_row_is_learned_from_as_often_as_asked():
    steps = list(make_loader())
    assert len(steps) == 12
    first = steps[:4]  # one rollout: 2 steps, twice
    seen = sorted(label for step in first for label in labels(step))
    assert seen == sorted([value for index in range(6) for value in (index, index + 1)] * 2)
    assert [step.totals.sequences for step in steps[4:8]] == [3, 2, 3, 2]  # five rows are left of the second
    assert steps[0].epoch == 1.0 and steps[4].epoch == 2.0


def test_what_is_logged_of_a_rollout_comes_with_its_first_step():
    assert [step.metrics for step in make_loader(num_steps=6)] == [
        {"reward/mean": 0.0},
        {},
        {},
        {},
        {"reward/mean": 1.0},
        {},
    ]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 7])
def test_resuming_anywhere_gives_the_same_steps(stop):
    whole = [labels(step) for step in make_loader()]
    first = make_loader()
    steps = iter(first)
    for _ in range(stop):
        next(steps)
    state = first.state_dict()
    second = make_loader()
    second.load_state_dict(state)
    assert [labels(step) for step in second] == whole[stop:]


def test_the_state_is_tensors_in_plain_containers():
    loader = make_loader()
    next(iter(loader))

    def plain(value):
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str, bool, torch.Tensor)

    assert plain(loader.state_dict())
    assert not any(isinstance(value, np.generic) for value in loader.state_dict().values())


def test_ranks_share_each_step():
    alone = [labels(step) for step in make_loader()]
    ranks = [list(make_loader(rank=rank, num_ranks=2)) for rank in range(2)]
    for number, expected in enumerate(alone):
        assert sorted(labels(ranks[0][number]) + labels(ranks[1][number])) == expected
        assert len(ranks[0][number].micro_batches) == len(ranks[1][number].micro_batches)


def test_what_is_resampled_skips_no_prompt():
    """Windows of six; two more are asked for, then a window again: every prompt comes once, in order, also resumed."""
    loader = make_loader()
    taken = [loader._next_prompts(number) for number in (None, 2, None)]
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    taken += [resumed._next_prompts(number) for number in (5, None)]
    assert [len(rows) for rows in taken] == [6, 2, 6, 5, 6]
    every = [window * 100 + index for window in range(5) for index in range(6)]
    assert [row for rows in taken for row in rows] == every[:25]
