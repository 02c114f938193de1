from collections import Counter

import pytest

from alignlab.batches import Demonstration, Text
from alignlab.data.split import choose_held_out, split_rows
from alignlab.errors import InputError


class Source:
    """Texts in memory."""

    def __init__(self, train, validation=()):
        self.dropped = Counter()
        self.parts = {"train": train, "validation": validation}

    def rows(self, split):
        return (Text(origin=f"{split}:{i}", text=text) for i, text in enumerate(self.parts[split]))

    def fingerprint(self):
        return "texts"


def texts(source, part, size, seed=1):
    return [row.text for row in split_rows(source, part, size, seed)]


@pytest.mark.parametrize(("size", "held_out"), [(0.25, 5), (3, 3), (0.001, 1)])
def test_train_and_validation_share_nothing_and_lose_nothing(size, held_out):
    source = Source([f"text {i}" for i in range(20)])
    train, validation = texts(source, "train", size), texts(source, "validation", size)
    assert len(validation) == held_out
    assert sorted(train + validation) == sorted(source.parts["train"])
    assert texts(source, "validation", size, seed=2) != validation or held_out == 1


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

    assert len(list(split_rows(One([]), "train", 0.1, 1))) == 1
    assert list(split_rows(One([]), "validation", 0.1, 1)) == []


def test_holding_out_everything_is_refused():
    with pytest.raises(InputError, match="none is left"):
        choose_held_out(10, 10, seed=1)
