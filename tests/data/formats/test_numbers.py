"""Numeric columns that something computes with: each row has a finite number there, or is refused by file and field."""

import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from alignlab.assemble import number_columns
from alignlab.data.formats import to_row
from alignlab.data.sources.files.record import Record
from alignlab.data.table.counts import Dropped
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.methods.reward_model import RewardModel
from alignlab.methods.sft import SFT
from tests.commands import alignlab
from tests.data.tokenise.tiny_tokenizers import CHATML, byte_tokenizer, token_settings

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
MISSING = object()
WORDS = ["method=reward_model", "data=jsonl", "data.validation_size=null", "logger=none"]


def token_row(value, columns=("margin",), **settings):
    record = PAIR if value is MISSING else {**PAIR, "margin": value}
    row = to_row(Record("f.parquet[3]", record), "auto", {})
    return tokenize(row, byte_tokenizer(template=CHATML), token_settings(number_columns=columns, **settings))


BAD = [
    (math.nan, "field 'margin' is nan where a finite number is needed"),
    (-math.inf, "field 'margin' is -inf where a finite number is needed"),
    (10**400, "field 'margin' is too large where a finite number is needed"),
    ("0.5", "field 'margin' is a text where a number is needed"),
    (True, "field 'margin' is a boolean where a number is needed"),
    (None, "field 'margin' is null where a number is needed"),
    ([1.0], "field 'margin' is a list where a number is needed"),
    (MISSING, "field 'margin' is missing, and a number is needed"),
]


@pytest.mark.parametrize(("value", "why"), BAD)
def test_what_is_no_finite_number_is_refused_by_its_row(value, why):
    with pytest.raises(InputError) as refused:
        token_row(value)
    assert (refused.value.asked, refused.value.why) == ("f.parquet[3]", why)


@pytest.mark.parametrize(("value", "why"), BAD)
def test_or_left_out_and_counted(value, why):
    dropped = token_row(value, bad_rows="drop")
    assert isinstance(dropped, Dropped) and why in dropped.detail


@pytest.mark.parametrize("value", [0, -1.5, 10**300])
def test_finite_numbers_are_kept(value):
    assert token_row(value).columns["margin"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "x", None, MISSING])
def test_a_column_that_nothing_computes_with_may_hold_anything(value):
    assert "margin" not in token_row(value, columns=()).columns


@pytest.mark.parametrize("scores", [[10**400, 1], [1.0, -(10**400)]])
def test_scores_beyond_the_largest_float_are_refused(scores):
    with pytest.raises(InputError, match="not finite"):
        to_row(Record("f.jsonl:1", {**PAIR, "scores": scores}), "auto", {})


def test_a_row_with_a_negative_weight_is_refused():
    with pytest.raises(InputError, match="field 'margin' is -1, and the weight of a row is 0 or more"):
        token_row(-1, weight_column="margin")
    assert token_row(0, weight_column="margin").columns["margin"] == 0


def test_which_columns_are_needed_is_said_by_the_settings():
    data = {"order": "curriculum", "order_column": "level"}
    config = {"method": {"margin_column": "margin", "weight_column": None}, "data": data}
    assert number_columns(config, RewardModel) == ("level", "margin")
    config["data"] = {**data, "order": "shuffled"}
    assert number_columns(config, SFT) == ()


def test_rows_of_a_table_are_named_together_before_training(tmp_path, capsys):
    rows = [{**PAIR, "margin": value, "weight": 1.0} for value in (1.0, math.nan, None, 2.0)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    words = [*WORDS, f"data.path={tmp_path}/pairs.parquet", f"data.cache_dir={tmp_path}/cache"]
    words += ["method.margin_column=margin"]
    assert alignlab("train", *words, f"run_dir={tmp_path / 'run'}") == 2
    told = capsys.readouterr().err
    assert "pairs.parquet[1]: field 'margin' is nan" in told and "pairs.parquet[2]: field 'margin' is null" in told
    assert not (tmp_path / "run").exists()


def test_the_nearest_name_is_told(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**PAIR, "margins": 1.0}) + "\n")
    words = [*WORDS, f"data.path={tmp_path}/pairs.jsonl", "method.weight_column=margin", f"data.cache_dir={tmp_path}/c"]
    assert alignlab("train", *words, f"run_dir={tmp_path / 'run'}") == 2
    assert "Did you mean 'margins'" in capsys.readouterr().err
