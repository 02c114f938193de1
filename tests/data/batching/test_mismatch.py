"""Prompts with the completion of the next row."""

from itertools import product

import pytest

from alignlab.data.batching.mismatch import WithMismatched, mismatch
from alignlab.types.rows import TokenRow


def row(prompt, completion, supervised=None):
    """Tokens of a prompt and of one completion; all of it supervised unless told."""
    flags = [False] * len(prompt) + (supervised or [True] * len(completion))
    return TokenRow(
        [*prompt, *completion], flags, [[len(prompt), len(completion)]], f"row {prompt[0]}", {"row": prompt[0]}
    )


ROWS = [row([1, 2], [11, 12, 13]), row([3], [14]), row([5, 6, 7], [15, 16, 17, 18])]


class Table(list):
    key = "table"


def test_each_prompt_meets_the_completion_of_the_next_row_and_the_last_that_of_the_first():
    mismatched = [one.mismatched for one in WithMismatched(Table(ROWS), max_tokens=20)]
    assert [one.tokens for one in mismatched] == [[1, 2, 14], [3, 15, 16, 17, 18], [5, 6, 7, 11, 12, 13]]
    assert [one.groups for one in mismatched] == [[[2, 1]], [[1, 4]], [[3, 3]]]
    assert [one.supervised.count(True) for one in mismatched] == [1, 4, 3]


def test_a_companion_never_has_the_same_prompt():
    rows = [row([1], [11]), row([1], [12]), row([2], [13]), row([2], [14]), row([1], [15])]
    mismatched = [one.mismatched for one in WithMismatched(Table(rows), max_tokens=20)]
    assert [one.tokens for one in mismatched] == [[1, 13], [1, 13], [2, 15], [2, 15], [1, 13]]
    equal = WithMismatched(Table([row([1], [11]), row([1], [12])]), max_tokens=20)
    assert [one.mismatched.tokens for one in equal] == [[1, 12], [1, 11]]


def test_a_companion_is_the_next_row_with_another_prompt():
    for prompts in product([1, 2], repeat=6):
        rows = [row([prompt], [10 + index]) for index, prompt in enumerate(prompts)]
        found = [one.mismatched.tokens[1] - 10 for one in WithMismatched(Table(rows), max_tokens=20)]
        for index, prompt in enumerate(prompts):
            later = [other % 6 for other in range(index + 1, index + 6) if prompts[other % 6] != prompt]
            assert found[index] == (later[0] if later else (index + 1) % 6), prompts


def test_a_companion_leaves_the_row_as_it_is():
    for given, one in zip(ROWS, WithMismatched(Table(ROWS), max_tokens=20), strict=True):
        assert (one.tokens, one.groups, one.columns) == (given.tokens, given.groups, given.columns)
        assert one.mismatched.columns == given.columns


@pytest.mark.parametrize(("limit", "tokens"), [(6, [5, 6, 7, 11, 12, 13]), (5, [5, 6, 7, 11, 12]), (2, [5, 6, 7, 11])])
def test_what_is_too_long_there_is_cut_and_one_token_stays(limit, tokens):
    found = mismatch(ROWS[2], ROWS[0], limit)
    assert found.tokens == tokens and found.groups == [[3, len(tokens) - 3]]
    assert len(found.supervised) == len(tokens)


def test_only_what_is_a_target_of_its_own_row_is_asked_for():
    """Flags travel with the completion; cut before its first target, all that is left is one."""
    other = row([3], [14, 15, 16], [False, True, True])
    assert mismatch(ROWS[0], other, 20).supervised == [False, False, False, True, True]
    assert mismatch(ROWS[0], other, 3).supervised == [False, False, True]


def test_of_a_completion_with_branches_the_first_one_is_taken():
    """Prompt 3 4; a first branch 14 15, and another, 16, after the prompt's 3."""
    flags = [False, False, True, True, True]
    other = TokenRow([3, 4, 14, 15, 16], flags, [[2, 3]], "branched", {}, branches={0: [[2, 2], [1, 1]]})
    found = mismatch(ROWS[0], other, 20)
    assert (found.tokens, found.groups, found.branches) == ([1, 2, 14, 15], [[2, 2]], {})
    assert found.supervised == [False, False, True, True]
