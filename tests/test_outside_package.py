"""The package of docs/adding_a_method.md, outside of this repository: all of it trains, and nothing is edited here."""

import re
import shlex
import sys

import pytest

from alignlab.config import target
from tests.commands import QUIET, alignlab, metrics, summary
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"alignlab train --config-dir conf (.+)", PAGE)
SMALL = [
    *QUIET, "trainer.max_steps=2", "data.source.num_train=24", "data.source.num_validation=2",
    "data.global_batch_size=4", "scheduler.warmup_steps=0",
]  # fmt: skip
ROLLOUT = ["method.num_completions=3", "rollout.max_completion_tokens=8", "method.group_filter=keep"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """``lab(words)`` runs a command of the page, made small; returns the run folder."""
    for title, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE, flags=re.DOTALL):
        file = tmp_path / title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "mylab" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*words, folder="run"):
        folder = tmp_path / folder
        return alignlab("train", "--config-dir", tmp_path / "conf", *words, *SMALL, f"run_dir={folder}"), folder

    yield run
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]
    target._locate.cache_clear()


def test_the_page_shows_each_kind_of_extension():
    words = " ".join(COMMANDS)
    kinds = ("method/loss=squared_hinge", "method=modest", "method=length_dpo", "method=raft", "brevity", "labelled")
    assert all(kind in words for kind in kinds)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m" not in c.split() and "rollout=vllm" not in c])
def test_every_command_of_the_page_trains(lab, command):
    words = shlex.split(command)
    samples = any(word in ("method=raft", "method=grpo") for word in words)
    code, folder = lab(*words, *(ROLLOUT if samples else []))
    assert code == 0
    assert summary(folder)["status"] == "done" and len(metrics(folder)) >= 2


def test_a_metric_of_its_own_is_logged_and_can_be_monitored(lab):
    code, folder = lab("method=modest")
    first = metrics(folder)[0]
    assert code == 0 and 0 < first["train/confidence"] < 1
    assert first["train/loss"] > first["train/nll"]
    early = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/confidence"]
    assert lab("method=modest", *early, folder="stopped")[0] == 0
    assert lab("method=sft", *early, folder="refused")[0] == 2, "only the method that declares it has the metric"


def test_held_out_values_of_any_name_can_be_monitored(lab):
    """In validation ``rewards/margins`` is logged as ``val/rewards/margins``."""
    early = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/rewards/margins"]
    assert lab("method=dpo", *early, "callbacks.early_stopping.mode=max")[0] == 0


def test_the_loss_of_pairs_is_the_one_that_trains(lab):
    """Before the first step all log-ratios are 0: the squared hinge is the square of its margin."""
    code, folder = lab("method=dpo", "method/loss=squared_hinge", "method.loss.squared_hinge.margin=3.0")
    assert code == 0 and metrics(folder)[0]["train/loss"] == pytest.approx(9.0, rel=1e-4)


def test_an_online_method_learns_from_its_own_advantages(lab):
    code, folder = lab(
        "method=raft",
        *ROLLOUT,
        "method/reward=[brevity]",
        "method.reward.brevity.num_characters=40",
        "rollout.temperature=2.0",
    )
    assert code == 0
    rows = metrics(folder)
    assert rows[0]["train/loss"] > 0 and "reward/brevity" in rows[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method=modest", "method.strenth=1"], "Did you mean 'method.strength'"),
        (["method=modest", "method.strength=-1"], "greater than or equal to 0"),
        (["method=length_dpo", "method.reference_decay=2"], "less than 1"),
        (["method=raft", "method.num_completions=0"], "greater than or equal to 1"),
        (["method=dpo", "method/loss=squared_hinge", "method.loss.squared_hinge.margin=0"], "greater than 0"),
        (["method=sft", "method/loss=squared_hinge"], "it should be a function of SupervisedTokens"),
        (
            ["method=grpo", "method/reward=brevity", "method.reward.brevity.num_characters=0"],
            "greater than or equal to 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_are_checked_like_ours(lab, capsys, words, told):
    assert lab(*words)[0] == 2
    assert told in capsys.readouterr().err


def test_a_metric_without_a_meaning_is_refused_by_name(lab, tmp_path):
    file = tmp_path / "mylab" / "methods.py"
    file.write_text(file.read_text().replace('    own_metrics = {"confidence"', '    own_metrics = {"modesty"'))
    with pytest.raises(KeyError, match=r"confidence.*own_metrics"):
        lab("method=modest", "debug=true")
