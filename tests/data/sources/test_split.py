import itertools
from collections import Counter

import pytest

from alignlab.data.sources.split import held_out_limit, split_rows
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Text


class Source:
    """Texts in memory."""

    def __init__(self, train, validation=()):
        self.dropped = Counter()
        self.parts = {"train": train, "validation": validation}

    def rows(self, split):
        return (Text(origin=f"{split}:{i}", text=text) for i, text in enumerate(self.parts[split]))

    def fingerprint(self):
        return "texts"


def texts(source, part, size, streaming=False):
    return [row.text for row in split_rows(source, part, size, streaming)]


@pytest.mark.parametrize(("size", "held_out"), [(0.25, 5), (3, 3), (0.001, 1)])
def test_train_and_validation_share_nothing_and_lose_nothing(size, held_out):
    source = Source([f"text {i}" for i in range(20)])
    train, validation = texts(source, "train", size), texts(source, "validation", size)
    assert len(validation) == held_out
    assert sorted(train + validation) == sorted(source.parts["train"])


def test_a_validation_part_of_its_own_wins():
    source = Source(["a", "b"], ["c"])
    assert texts(source, "train", 0.5) == ["a", "b"]
    assert texts(source, "validation", 0.5) == ["c"]


def test_no_validation_where_none_is_asked_for():
    source = Source(["a", "b"])
    assert (texts(source, "train", None), texts(source, "validation", None)) == (["a", "b"], [])


def test_of_a_single_document_the_end_is_held_out():
    source = Source(["one two three four five six seven eight nine ten"])
    (train,), (validation,) = texts(source, "train", 0.2), texts(source, "validation", 0.2)
    assert train + validation == source.parts["train"][0]
    assert train.endswith(" ") and 0 < len(validation) < len(train)


def test_a_single_dialogue_cannot_be_divided():
    class One(Source):
        def rows(self, split):
            return iter([Demonstration(origin="1", messages=())] if split == "train" else [])

    assert len(list(split_rows(One([]), "train", 0.1))) == 1
    assert list(split_rows(One([]), "validation", 0.1)) == []


def test_holding_out_everything_is_refused():
    with pytest.raises(InputError, match="none is left"):
        held_out_limit(list(range(10)), 10)


def test_equal_prompts_stay_together():
    source = Source([f"text {i % 20}" for i in range(60)])
    train, validation = texts(source, "train", 0.25), texts(source, "validation", 0.25)
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 60 and validation


def test_a_text_without_blanks_is_divided_where_asked():
    source = Source(["字" * 5000])
    (train,), (validation,) = texts(source, "train", 0.2), texts(source, "validation", 0.2)
    assert (len(train), len(validation)) == (4000, 1000)


@pytest.mark.parametrize("size", [0.25, 3])
def test_a_stream_is_divided_row_by_row(size):
    source = Source([f"text {i}" for i in range(40)])
    train, validation = texts(source, "train", size, True), texts(source, "validation", size, True)
    assert sorted(train + validation) == sorted(source.parts["train"])
    assert 0 < len(validation) < 20


def test_a_stream_is_not_read_to_its_end():
    class Endless(Source):
        def rows(self, split):
            count = itertools.count() if split == "train" else ()
            return (Text(origin=str(i), text=f"text {i}") for i in count)

    rows = split_rows(Endless([]), "train", 2, streaming=True)
    assert [row.text for row in itertools.islice(rows, 2)] == ["text 2", "text 3"]
