"""Reference log-probabilities computed once: the same curve, a cache that knows its grounds, a freed reference."""

import gc
import weakref

import pytest

from alignlab.callbacks import precompute_reference as precompute
from alignlab.callbacks.precompute_reference import PrecomputeReference, column_key
from tests.commands import QUIET, alignlab, metrics, summary

COMMON = [
    *QUIET,
    "trainer.max_steps=4",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=2",
    "data.source.num_train=12",
    "data.source.num_validation=4",
    "data.global_batch_size=5",
    "data.batch_size_per_device=2",
    "scheduler.warmup_steps=0",
]
TIMED = ("train/tokens_per_second", "train/step_seconds")
UNDECIDED = ("rewards/accuracies",)  # before the first step all rewards are 0, and rounding breaks the tie


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def scored(monkeypatch):
    """Names of the parts that were scored, in their order."""
    calls, score_table = [], precompute.score_table

    def spy(data, table, score, device, part, side):
        calls.append(part)
        return score_table(data, table, score, device, part, side)

    monkeypatch.setattr(precompute, "score_table", spy)
    return calls


@pytest.fixture
def train(tmp_path):
    """``train(*words, pre=True)``: the folder of a run that has been trained."""
    number = iter(range(100))

    def run(*words, pre=True):
        folder = tmp_path / f"run{next(number)}"
        flag = f"method.precompute_reference={str(pre).lower()}"
        assert alignlab("train", *COMMON, flag, *words, f"run_dir={folder}") == 0
        return folder

    return run


def assert_same_curve(one, other):
    for mine, yours in zip(metrics(one), metrics(other), strict=True):
        assert mine.keys() == yours.keys()
        for name in mine.keys() - {*TIMED, *(UNDECIDED if mine["progress/step"] == 1 else ())}:
            assert mine[name] == pytest.approx(yours[name], rel=1e-5, abs=1e-5), name
    held_out = summary(other)["metrics"]
    assert any(name.startswith("val/") for name in held_out)


CASES = {
    "dpo": ["method=dpo"],
    "group_dpo": ["method=group_dpo", "data.batch_size_per_device=1"],  # the hardest of equals is undecided likewise
    "kto": ["method=kto"],
    "dpo_lora": ["method=dpo", "peft=lora"],
    "dpo_padded": ["method=dpo", "data.packing=false"],
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case == "dpo" else [pytest.mark.slow]) for case in CASES],
)
def test_the_same_curve_as_without_and_scored_once(train, scored, case):
    """Training and held-out rows over two epochs, ragged steps; the second run reads what the first one wrote."""
    plain = train(*CASES[case], pre=False)
    assert scored == []
    first = train(*CASES[case])
    factories = ["train", "train", "validation", "validation"] if case == "kto" else ["train", "validation"]
    assert scored == factories, "the mismatched rows too"
    second = train(*CASES[case])
    assert scored == factories
    assert_same_curve(plain, first)
    assert_same_curve(first, second)


@pytest.mark.slow
def test_other_weights_rows_or_precision_are_scored_anew(train, scored, monkeypatch):
    """A policy of another stage, one row more, bfloat16, or another line in the code that scores."""
    words = ["method=dpo", "trainer.max_steps=1"]
    once = ["train", "validation"]
    first = train(*words)
    for count, other in enumerate(
        [["data.source.num_train=13"], [f"init_from={first}"], ["trainer.precision=bf16-mixed"]]
    ):
        train(*words, *other)
        assert scored[2:] == (once * 3)[: len(scored) - 2] and len(scored) > 2 + count, other
    train(*words)
    before = len(scored)
    monkeypatch.setattr(precompute, "CODE", precompute.CODE[1:])
    train(*words)
    assert len(scored) == before + 2


def test_a_key_is_of_the_rows_the_weights_and_the_code(tmp_path, monkeypatch):
    class Table:
        key = "rows"

    table, keys = Table(), set()
    keys.add(column_key(table, "weights"))
    assert column_key(table, "weights") in keys
    keys.add(column_key(table, "other weights"))
    table.key = "other rows"
    keys.add(column_key(table, "weights"))
    (tmp_path / "changed.py").write_text("one more line")
    table.__file__ = str(tmp_path / "changed.py")
    monkeypatch.setattr(precompute, "CODE", (*precompute.CODE, table))
    keys.add(column_key(table, "weights"))
    assert len(keys) == 4


def test_it_shows_its_progress_and_frees_the_reference(train, monkeypatch, caplog):
    """12 rows in steps of 5: three batches, each with a line where none is too early for one."""
    seen, start = [], PrecomputeReference.on_fit_start

    def on_fit_start(callback, trainer, method):
        copies = weakref.ref(method.reference.weights.model)
        start(callback, trainer, method)
        gc.collect()
        seen.append((copies(), method.reference.weights))

    monkeypatch.setattr(PrecomputeReference, "on_fit_start", on_fit_start)
    monkeypatch.setattr(precompute, "SECONDS_BETWEEN_LINES", -1)
    train("method=dpo", "trainer.max_steps=1")
    assert seen == [(None, None)]
    for number in (1, 2, 3):
        assert f"reference log-probs, train: {number} of 3 batches" in caplog.messages


@pytest.mark.slow
def test_two_processes_share_the_work_and_come_to_the_same(train):
    """Each scores its half of the rows, and both have all of them."""
    words = ["method=dpo", "data.global_batch_size=4"]
    alone = train(*words)
    assert_same_curve(alone, train(*words, "data.fresh=true", "trainer.devices=2", "strategy=ddp"))


@pytest.mark.parametrize("words", [["method.reference=ema"], ["method.length_desensitisation=0.5"]])
def test_what_cannot_be_computed_before_is_refused(tmp_path, capsys, words):
    typed = ["method=dpo", *COMMON, "method.precompute_reference=true", *words, f"run_dir={tmp_path / 'run'}"]
    assert alignlab("train", *typed) == 2
    assert "method.precompute_reference=false" in capsys.readouterr().err
