import pytest
import torch

from alignlab.data.batching.collate import collate, count_targets, totals
from alignlab.types.rows import TokenRow

PAIR = TokenRow(
    tokens=[10, 11, 20, 21, 30],
    supervised=[False, False, True, True, True],
    groups=[[2, 2, 1]],
    origin="pair",
    columns={"margin": 0.5, "scores": [2.0, 1.0]},
)
BLOCK = TokenRow(
    tokens=[1, 2, 3, 4, 5],
    supervised=[True] * 5,
    groups=[[0, 3], [0, 2]],
    origin="block",
    columns={"margin": 0.1, "scores": [1.0, 0.0]},
)


def predictions(batch):
    """(sequence, token that predicts, label) of every target, whatever the layout."""
    source_positions = batch.inputs["input_ids"].flatten()[batch.source_positions]
    return list(zip(batch.sequence_ids.tolist(), source_positions.tolist(), batch.labels.tolist(), strict=True))


@pytest.mark.parametrize("packing", [True, False], ids=["flat", "padded"])
def test_targets_worked_by_hand(packing):
    # The prompt's last token 11 predicts the first of both completions; a document's first token is no target.
    batch = collate([PAIR, BLOCK], packing=packing)
    expected = [(0, 11, 20), (0, 20, 21), (1, 11, 30), (2, 1, 2), (2, 2, 3), (3, 4, 5)]
    assert predictions(batch) == expected
    assert batch.group_ids.tolist() == [0, 0, 1, 2]
    assert batch.columns["margin"].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert batch.columns["scores"].tolist() == [2.0, 1.0, 1.0, 0.0]
    assert batch.num_tokens == 10


def test_padded_rows_hold_one_path_each():
    batch = collate([PAIR], packing=False, pad_token_id=99)
    assert batch.inputs["input_ids"].tolist() == [[10, 11, 20, 21], [10, 11, 30, 99]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_scores_that_a_row_lacks_are_no_numbers():
    plain = TokenRow(tokens=[1, 2, 3], supervised=[False, True, True], groups=[[1, 1, 1]], origin="", columns={})
    scores = collate([PAIR, plain], packing=True).columns["scores"]
    assert scores[:2].tolist() == [2.0, 1.0] and scores[2:].isnan().all()
    assert "margin" not in collate([PAIR, plain], packing=True).columns


def test_masks_go_by_position_so_the_pad_id_may_be_a_real_token():
    row = TokenRow(tokens=[5, 7, 2], supervised=[False, True, True], groups=[[1, 2]], origin="", columns={})
    batch = collate([row], packing=False, pad_token_id=2)
    assert batch.labels.tolist() == [7, 2]


def test_totals_count_what_collate_makes():
    sums, batch = totals([PAIR, BLOCK]), collate([PAIR, BLOCK], packing=True)
    assert sums.supervised_tokens == batch.labels.numel() == count_targets(PAIR) + count_targets(BLOCK) == 6
    assert (sums.sequences, sums.groups, sums.tokens, sums.rows) == (batch.num_sequences, 3, batch.num_tokens, 2)


def test_prompt_tokens_are_never_targets():
    row = TokenRow(tokens=[1, 2, 3], supervised=[True, True, True], groups=[[2, 1]], origin="", columns={})
    assert torch.equal(collate([row], packing=True).labels, torch.tensor([3]))
    assert count_targets(row) == 1


# Prompt 10 11; a completion 20 21 22 with the branches 30 31 after the prompt's 10, and 40 after 10 11 20; another, 50.
BRANCHED = TokenRow(
    tokens=[10, 11, 20, 21, 22, 30, 31, 40, 50],
    supervised=[False, False, True, False, True, False, True, True, True],
    groups=[[2, 6, 1]],
    origin="branched",
    columns={"scores": [2.0, 1.0]},
    branches={0: [[2, 3], [1, 2], [3, 1]]},
)


@pytest.mark.parametrize("packing", [True, False], ids=["flat", "padded"])
def test_branches_belong_to_the_sequence_of_their_completion(packing):
    batch = collate([PAIR, BRANCHED], packing=packing)
    assert predictions(batch)[3:] == [(2, 11, 20), (2, 21, 22), (2, 30, 31), (2, 20, 40), (3, 11, 50)]
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.columns["scores"].tolist() == [2.0, 1.0, 2.0, 1.0]
    # The sequence ends where its first branch does: at the last turn.
    assert batch.inputs["input_ids"].flatten()[batch.last_positions].tolist() == [21, 30, 22, 50]
    sums = totals([PAIR, BRANCHED])
    assert (sums.supervised_tokens, sums.sequences, sums.chosen_tokens) == (8, 4, 2 + 4)


def test_padded_rows_hold_one_branch_each():
    batch = collate([BRANCHED], packing=False)
    assert batch.inputs["input_ids"].tolist() == [
        [10, 11, 20, 21, 22],
        [10, 30, 31, 0, 0],
        [10, 11, 20, 40, 0],
        [10, 11, 50, 0, 0],
    ]


def test_a_micro_batch_counts_unless_it_is_a_filler():
    assert collate([PAIR], packing=True).counted == 1
    assert collate([PAIR], packing=True, counted=0).counted == 0
