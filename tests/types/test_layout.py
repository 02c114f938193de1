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


def allowed_by_layout(groups, window=None, branches=None):
    layout, total = packed_layout(groups, branches), sum(map(sum, groups))
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


def test_each_segment_fills_most_of_its_bucket_though_lengths_fall_slowly():
    """Lengths from 400 to 40, each 2 % below another: at least 80 % of the longest, or at most 16 tokens less."""
    lengths = [round(400 * 0.98**step) for step in range(114)]
    random.Random(0).shuffle(lengths)
    layout = packed_layout([[0, length] for length in lengths])
    for bucket in layout.buckets:
        held = [len(set(row.tolist())) for row in bucket.queries]
        assert min(held) >= min(0.8 * max(held), max(held) - 16)
    assert len(layout.buckets) < 12


def test_completions_of_other_lengths_share_no_bucket_though_their_paths_are_as_long():
    """Prompt and two completions of 300 + 10 tokens, and of 10 + 300: queries are padded to a width as well."""
    layout = packed_layout([[300, 10, 10], [10, 300, 300]])
    held = sorted(tuple(bucket.queries.shape) for bucket in layout.buckets if not bucket.causal)
    assert held == [(2, 10), (2, 300)]


# --- branches ---------------------------------------------------------------------------------------------------------


def branch_paths(groups, branches):
    """Flat positions of each path: what a branch continues, counted along prompt and first branch, and itself."""
    paths, start, number = [], 0, 0
    for prompt, *completions in groups:
        before = start + prompt
        for length in completions:
            parts, at = branches.get(number, [[prompt, length]]), before
            main = [*range(start, start + prompt), *range(before, before + parts[0][1])]
            for fork, tokens in parts:
                paths.append(main[:fork] + list(range(at, at + tokens)))
                at += tokens
            before, number = before + length, number + 1
        start = before
    return paths


def random_branches(draw):
    groups, branches, number = [], {}, 0
    for _ in range(draw.randint(1, 5)):
        prompt, lengths = draw.randint(0, 12), []
        for _ in range(draw.randint(1, 3)):
            parts = [[prompt, draw.randint(1, 20)]]
            parts += [[draw.randint(0, sum(parts[0])), draw.randint(1, 20)] for _ in range(draw.randint(0, 3))]
            if len(parts) > 1:
                branches[number] = parts
            lengths.append(sum(tokens for _, tokens in parts))
            number += 1
        groups.append([prompt, *lengths])
    return groups, branches


def test_a_branch_sees_what_it_continues_and_itself():
    # Prompt 0 1 2, first branch 3 4, a branch 5 6 that leaves after 0 1, and one, 7, that leaves after 3.
    seen = allowed_by_layout([[3, 5]], branches={0: [[3, 2], [2, 2], [4, 1]]})
    assert [line.nonzero()[:, 0].tolist() for line in seen[3:]] == [
        *([0, 1, 2, 3], [0, 1, 2, 3, 4]),
        *([0, 1, 5], [0, 1, 5, 6]),
        [0, 1, 2, 3, 7],
    ]
    assert positions([[3, 5]], {0: [[3, 2], [2, 2], [4, 1]]}).tolist() == [0, 1, 2, 3, 4, 2, 3, 4]


def test_random_branches_agree_with_the_definition():
    draw = random.Random(4)
    for _ in range(40):
        groups, branches = random_branches(draw)
        total = sum(map(sum, groups))
        seen, place = torch.zeros(total, total, dtype=torch.bool), torch.zeros(total, dtype=torch.long)
        for path in branch_paths(groups, branches):
            for index, position in enumerate(path):
                seen[position, path[: index + 1]] = True
                place[position] = index
        # Prompts without completions do not occur here, so every token is on a path.
        assert torch.equal(allowed_by_layout(groups, branches=branches), seen), (groups, branches)
        assert torch.equal(positions(groups, branches), place)
