"""The data of a rollout: weights of rewards, and which groups are replaced by others."""

import pytest
import torch

from alignlab.rewards.counts import RewardCounts
from tests.commands import QUIET, alignlab
from tests.methods.toy import METHODS, make_method
from tests.rollout.test_rollout import make_rollout

FLAT, MIXED = (1.0, 1.0), (0.0, 1.0)


@pytest.mark.parametrize(
    ("group_filter", "rounds", "asked", "kept"),
    [
        ("keep", 9, [3], [FLAT, MIXED, FLAT]),
        ("drop", 9, [3], [MIXED]),
        ("resample", 0, [3], [MIXED]),
        ("resample", 1, [3, 2], [MIXED, MIXED]),
        ("resample", 9, [3, 2, 1], [MIXED, MIXED, MIXED]),
    ],
)
def test_groups_of_equal_rewards_are_replaced_until_none_is_missing(group_filter, rounds, asked, kept):
    """Each prompt is the rewards of its group: of the first three one is kept, then one of two, then the last."""
    changes = {"group_filter": group_filter, "max_resample_rounds": rounds}
    data = METHODS["grpo"](**changes, factories=make_method("grpo").factories).rollout
    groups, numbers, keys = iter([FLAT, MIXED, FLAT, MIXED, FLAT, MIXED]), [], []

    def take(number=3):
        numbers.append(number)
        return [next(groups) for _ in range(number)]

    def sample(prompts, key):
        keys.append(key)
        lengths, finished = [(1, 1)] * len(prompts), [(True, True)] * len(prompts)
        return make_rollout(lengths, prompts, finished), {"even": RewardCounts(asked=2, numbers=2)}

    sampled, rollout = data._gather(sample, 5, take)
    assert numbers == asked and len(sampled.prompts) == sum(asked)
    assert rollout.columns["reward"].tolist() == [reward for group in kept for reward in group]
    assert torch.equal(rollout.group_ids, torch.arange(len(kept)).repeat_interleave(2))
    assert len({*keys}) == len(keys), "every draw has random numbers of its own"


def test_a_penalty_weighs_one_beside_the_weights_of_rewards():
    """It is in no one's ``reward_weights``; the penalty has been scaled by its own setting."""
    data = METHODS["grpo"](reward_weights=[0.25], factories=make_method("grpo").factories).rollout
    even, penalty = torch.tensor([1.0, 0.0, 0.5]).double(), torch.tensor([0.0, -0.5, 0.0]).double()
    columns = {"reward/even": even, "reward/truncation": penalty}
    rewards, weights, greedy = data.rewards(make_rollout().with_columns(**columns))
    assert torch.equal(rewards, torch.stack([even, penalty], 1)) and weights.tolist() == [0.25, 1.0]
    assert greedy is None


def test_rewards_that_never_differ_are_said_once_in_a_row(tmp_path):
    (tmp_path / "reward.py").write_text("def same(completions):\n    return [0.5] * len(completions)\n")
    reward = ["method/reward=python", f"method.reward.python.path={tmp_path / 'reward.py'}:same"]
    words = ["method=grpo", *reward, "method.num_completions=2", "rollout.max_completion_tokens=4"]
    words += ["method.group_filter=keep", "method.steps_per_rollout=1"]
    rows = ["data.global_batch_size=2", "data.source.num_train=14", "data.source.num_validation=1"]
    assert alignlab("train", *QUIET, *words, *rows, "trainer.max_steps=7", f"run_dir={tmp_path / 'run'}") == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("had the same reward") == 1 and "in 5 rollouts in a row" in log
