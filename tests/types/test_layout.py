"""The flat layout's index arithmetic, checked against the definition: who may see whom."""

import random

import pytest
import torch

from alignlab.types.layout import packed_layout, positions


def allowed_by_definition(groups):
    """``[T, T]``: token i sees token j when j stands before it (or is it) in its prompt or its own completion."""
    sequence_ids = [(t, s) for t, group in enumerate(groups) for s, length in enumerate(group) for _ in range(length)]
    return torch.tensor(
        [
            [
                j <= i and sequence_ids[i][0] == sequence_ids[j][0] and sequence_ids[j][1] in (0, sequence_ids[i][1])
                for j in range(len(sequence_ids))
            ]
            for i in range(len(sequence_ids))
        ],
        dtype=torch.bool,
    ).reshape(len(sequence_ids), len(sequence_ids))


def allowed_by_layout(groups, window=None):
    layout, total = packed_layout(groups), sum(map(sum, groups))
    rows = []
    for bucket in layout.buckets:
        mask = bucket.mask(window)[:, 0]
        for queries, keys, seen in zip(bucket.queries, bucket.keys, mask, strict=True):
            for row in seen:
                line = torch.zeros(total, dtype=torch.bool)
                line[keys[row]] = True
                rows.append(line)
            assert len(queries) == len(seen)
    return torch.stack(rows)[layout.restore]


CASES = [
    [[0, 5]],
    [[3, 2]],
    [[3, 2, 4]],
    [[0, 4], [0, 1], [0, 30]],
    [[2, 3], [5, 1, 1, 9], [0, 7], [40, 2, 3]],
    [[0, 2, 3]],
    [[3, 0, 2]],
]


@pytest.mark.parametrize("groups", CASES, ids=str)
def test_every_token_sees_its_prompt_and_itself(groups):
    assert torch.equal(allowed_by_layout(groups), allowed_by_definition(groups))


def test_random_layouts_agree_with_the_definition():
    draw = random.Random(3)
    for _ in range(25):
        groups = [
            [draw.randint(0, 20), *(draw.randint(1, 25) for _ in range(draw.randint(1, 4)))]
            for _ in range(draw.randint(1, 6))
        ]
        assert torch.equal(allowed_by_layout(groups), allowed_by_definition(groups)), groups


def test_window_counts_path_positions_not_flat_ones():
    # Prompt 0 1 2, completions 3 4 and 5 6: on its path, token 5 follows token 2, so a window of 2 shows it 2 and 5.
    seen = allowed_by_layout([[3, 2, 2]], window=2)
    assert seen[5].nonzero()[:, 0].tolist() == [2, 5]
    assert seen[6].nonzero()[:, 0].tolist() == [5, 6]
    assert seen[2].nonzero()[:, 0].tolist() == [1, 2]


def test_positions_restart_per_tree_and_continue_per_completion():
    assert positions([[2, 3, 1], [0, 2]]).tolist() == [0, 1, 2, 3, 4, 2, 0, 1]


def test_similar_lengths_share_a_bucket_and_waste_little():
    groups = [[0, length] for length in (50, 52, 55, 49, 400, 390)]
    layout = packed_layout(groups)
    assert len(layout.buckets) == 2
    assert all(bucket.causal for bucket in layout.buckets)
    held = sum(bucket.queries.numel() for bucket in layout.buckets)
    assert held < 1.25 * sum(map(sum, groups))
