import pytest

from alignlab.data.table.counts import BAD, Counts, Dropped, count
from alignlab.data.tokenise.rows import tokenize, tokenize_counted
from alignlab.data.tokenise.truncate import truncate
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, TokenRow, longest_sequence
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

# A prompt 1 2 3 4 and the completions 5 6 7 and 8 9: sequences of 7 and 6 tokens.
ROW = TokenRow([1, 2, 3, 4, 5, 6, 7, 8, 9], [False] * 4 + [True] * 5, [[4, 3, 2]], "f:1", {"margin": 1.0})


def test_a_row_that_fits_is_unchanged():
    assert longest_sequence(ROW) == 7
    assert truncate(ROW, 7, "drop") is ROW


def test_error_names_the_row_and_the_length():
    with pytest.raises(InputError, match=r"max_tokens_per_sequence=6: f:1 has a sequence of 7 tokens"):
        truncate(ROW, 6, "error")


def test_drop_counts_all_tokens():
    assert truncate(ROW, 6, "drop") == Dropped("longer than data.max_tokens_per_sequence", "f:1", 9)


@pytest.mark.parametrize(
    ("limit", "policy", "tokens", "groups"),
    [
        (6, "left_prompt", [2, 3, 4, 5, 6, 7, 8, 9], [[3, 3, 2]]),
        (4, "left_prompt", [4, 5, 6, 7, 8, 9], [[1, 3, 2]]),
        (6, "right_completion", [1, 2, 3, 4, 5, 6, 8, 9], [[4, 2, 2]]),
        (5, "right_completion", [1, 2, 3, 4, 5, 8], [[4, 1, 1]]),
    ],
)
def test_all_completions_are_cut_alike(limit, policy, tokens, groups):
    cut = truncate(ROW, limit, policy)
    assert (cut.tokens, cut.groups) == (tokens, groups)
    assert cut.supervised == [token > 4 for token in tokens]
    assert cut.columns == ROW.columns and longest_sequence(cut) <= limit


@pytest.mark.parametrize(("limit", "policy"), [(3, "left_prompt"), (2, "left_prompt"), (4, "right_completion")])
def test_a_row_that_would_lose_its_loss_is_dropped(limit, policy):
    outcome = truncate(ROW, limit, policy)
    assert isinstance(outcome, Dropped) and outcome.tokens == 9


def test_a_pair_that_no_longer_differs_is_dropped():
    pair = TokenRow([1, 5, 6, 5, 7], [False, True, True, True, True], [[1, 2, 2]], "f:1")
    assert isinstance(truncate(pair, 2, "right_completion"), Dropped)


def test_left_prompt_keeps_bos():
    assert truncate(ROW, 5, "left_prompt", bos=1).tokens == [1, 4, 5, 6, 7, 8, 9]
    assert truncate(ROW, 5, "left_prompt", bos=2).tokens == [3, 4, 5, 6, 7, 8, 9]


def test_each_tree_of_a_row_is_cut_by_itself():
    row = TokenRow([1, 2, 3, 1, 2], [False, False, True, False, True], [[2, 1], [1, 1]], "f:1")
    cut = truncate(row, 2, "left_prompt")
    assert (cut.tokens, cut.groups) == ([2, 3, 1, 2], [[1, 1], [1, 1]])


@pytest.mark.parametrize(("policy", "expected"), [("left_prompt", [3, 4]), ("right_completion", None)])
def test_a_prompt_alone_can_be_cut_from_the_left_only(policy, expected):
    outcome = truncate(TokenRow([1, 2, 3, 4], [False] * 4, [[4]], "f:1"), 2, policy)
    assert isinstance(outcome, Dropped) if expected is None else outcome.tokens == expected


def test_a_completion_without_prompt_is_cut_from_the_right():
    row = TokenRow([1, 2, 3], [False, True, True], [[0, 3]], "f:1")
    assert truncate(row, 2, "right_completion").groups == [[0, 2]]


# A prompt 1 2 3 4; a completion 5 6 7 with branches 8 9 after 1 2 3 and 8 after the prompt and 5.
BRANCHED = TokenRow(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 8], [False] * 4 + [True] * 6, [[4, 6]], "f:1", branches={0: [[4, 3], [3, 2], [5, 1]]}
)


def test_branches_move_with_what_they_continue():
    assert longest_sequence(BRANCHED) == 7
    cut = truncate(BRANCHED, 5, "left_prompt")
    assert (cut.tokens, cut.groups) == ([3, 4, 5, 6, 7, 8, 9, 8], [[2, 6]])
    assert cut.branches == {0: [[2, 3], [1, 2], [3, 1]]}
    assert cut.supervised == [False] * 2 + [True] * 6


def test_branches_behind_a_cut_are_left_out():
    cut = truncate(BRANCHED, 5, "right_completion")
    assert (cut.tokens, cut.groups, cut.branches) == ([1, 2, 3, 4, 5, 8, 9], [[4, 3]], {0: [[4, 1], [3, 2]]})


def test_no_kept_row_is_without_loss():
    tokenizer = byte_tokenizer(template=CHATML)
    row = Demonstration(origin="f:1", messages=(user("Q" * 20), assistant("A" * 20)))
    for policy in ("left_prompt", "right_completion"):
        for limit in range(2, 70):
            outcome = tokenize(row, tokenizer, token_settings(max_tokens_per_sequence=limit, truncation=policy))
            assert isinstance(outcome, Dropped) or (any(outcome.supervised) and longest_sequence(outcome) <= limit)


def test_counts_add_up_and_print_on_one_line():
    cut = truncate(ROW, 6, "left_prompt")
    counts = count(ROW) + count(cut, cut_tokens=1) + count(truncate(ROW, 6, "drop"))
    assert counts == Counts(2, 17, 10, 1, 1, 1, 9, {"longer than data.max_tokens_per_sequence": 1})
    assert str(counts) == (
        "kept 2 rows (17 tokens, 10 supervised), cut 1 rows (1 tokens), dropped 1 rows (9 tokens): "
        "1 × longer than data.max_tokens_per_sequence"
    )


def test_counted_tokens_cut_off():
    tokenizer = byte_tokenizer(template=CHATML)
    row = Demonstration(origin="f:1", messages=(user("QQQQ"), assistant("AAAA")))
    whole = tokenize(row, tokenizer, token_settings())
    settings = token_settings(max_tokens_per_sequence=len(whole.tokens) - 3, truncation="left_prompt")
    outcome, counts = tokenize_counted(row, tokenizer, settings)
    assert (counts.cut_rows, counts.cut_tokens, counts.kept_tokens) == (1, 3, len(outcome.tokens))


@pytest.mark.parametrize(
    ("counts", "max_cut", "max_dropped", "refused"),
    [
        (Counts(kept_rows=8, cut_rows=2, dropped_rows=2), 0.2, 0.2, []),
        (Counts(kept_rows=8, cut_rows=2, dropped_rows=2), 0.1, 0.2, ["max_cut_fraction=0.1"]),
        (Counts(kept_rows=8, cut_rows=2, dropped_rows=2), 0.1, 0.1, ["max_cut_fraction", "max_dropped_fraction=0.1"]),
        (Counts(), 0.0, 0.0, []),
    ],
)
def test_thresholds_refuse_all_together(counts, max_cut, max_dropped, refused):
    if not refused:
        counts.check(max_cut, max_dropped)
        return
    with pytest.raises(InputError) as caught:
        counts.check(max_cut, max_dropped)
    assert all(name in str(caught.value) for name in refused)


@pytest.mark.parametrize("kept", [0, 4])
def test_the_remedy_for_rows_that_cannot_be_tokenised_is_not_about_their_length(kept):
    counts = Counts(kept_rows=kept, dropped_rows=4, reasons={BAD: 3, "longer than data.max_tokens_per_sequence": 1})
    with pytest.raises(InputError, match=r"Correct the rows: data\.bad_rows=error") as caught:
        counts.check(1.0, 0.1)
    assert ("data.max_dropped_fraction=0.51" in str(caught.value)) == bool(kept)  # without rows it would not help
