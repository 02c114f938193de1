"""What cannot be done is refused at once: exit code 2, one paragraph, no weight loaded, no folder left behind."""

import pytest

from alignlab.models.load import Pretrained
from tests.commands import alignlab

TYPOS = {
    "optimizer.lrr=1": "lr",
    "data.global_batchsize=8": "global_batch_size",
    "metod=sft": "method",
    "peft=lroa": "lora",
    "trainer.max_step=3": "max_steps",
    "method.reducton=token": "reduction",
    "checkpoint.every_n_step=3": "every_n_steps",
}
RANGES = {
    "optimizer.lr=-1": "optimizer.lr",
    "data.global_batch_size=0": "data.global_batch_size",
    "data.truncation=cut": "right_completion",
    "seed=one": "seed",
    "method=grpo method.reward_limits.timeout_seconds=0": "method.reward_limits.timeout_seconds",
    "method=grpo method.reward_limits.num_retries=many": "method.reward_limits.num_retries",
    "method=grpo method.reward_limits.default=.inf": "method.reward_limits.default",
    "method=grpo method.reward_limits.max_failed_rollout=1": "Did you mean 'method.reward_limits.max_failed_rollouts'",
    "data.validation_size=-3": "data.validation_size",
}
IMPOSSIBLE = {
    "prefix tuning in flat batches": (["peft=prefix", "data.packing=true"], "data.packing=false"),
    "half precision without a GPU": (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], "bf16-mixed"),
    "a curriculum of nothing": (["data.order=curriculum"], "order_column"),
    "a stop on a metric without its stage": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=perplexity"],
        "Did you mean 'val/perplexity'",
    ),
    "a stop on a metric without its stage, of other methods too": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=entropy"],
        "Did you mean 'val/entropy'",
    ),
    "a stop in the wrong direction": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/exact_match"],
        "Type callbacks.early_stopping.mode=max",
    ),
    "the best of a metric without its stage": (["checkpoint.best=perplexity"], "Did you mean 'val/perplexity'"),
    "the best of a metric of training": (["checkpoint.best=train/loss"], "Did you mean 'val/loss'"),
    "the best of a metric that has no direction": (["checkpoint.best=val/entropy"], "checkpoint.best_mode=max"),
}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    def loading(*args, **kwargs):
        raise AssertionError("weights were loaded before the refusal")

    monkeypatch.setattr(Pretrained, "load_model", loading)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", TYPOS)
def test_config_typo_suggests(word, capsys):
    assert alignlab("train", word) == 2
    refusal = capsys.readouterr().err
    assert TYPOS[word] in refusal and "Traceback" not in refusal


@pytest.mark.parametrize("word", RANGES)
def test_values_out_of_range_are_refused_with_the_range(word, capsys):
    assert alignlab("train", *word.split()) == 2
    assert RANGES[word] in capsys.readouterr().err


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_incompatible_combination_refused_before_load(case, capsys):
    words, remedy = IMPOSSIBLE[case]
    assert alignlab("train", *words) == 2
    assert remedy in capsys.readouterr().err


def test_all_faults_are_reported_together(capsys):
    assert alignlab("train", "optimizer.lrr=1", "data.global_batch_size=0", "seed=-1") == 2
    refusal = capsys.readouterr().err
    assert all(word in refusal for word in ("optimizer.lrr", "data.global_batch_size", "seed"))


@pytest.mark.parametrize(
    ("words", "fits", "others"),
    [
        (["method=sft", "method/loss=sigmoid"], {"nll", "dft"}, {"sigmoid", "sft"}),
        (["method=dpo", "method/loss=group_hinge"], {"sigmoid", "ipo", "sft"}, {"kto", "nll", "grpo"}),
        (["method=group_dpo", "method/loss=ipo"], {"group_hinge", "all_pairs"}, {"sigmoid"}),
        (["method=ppo", "method/loss=ipo"], {"grpo", "dapo", "gspo", "luspo"}, {"nll"}),
        (["method=kto", "method/loss=nll"], {"kto", "apo_zero_unpaired"}, {"apo_zero"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_loss_of_another_kind_is_refused_with_those_that_fit(capsys, words, fits, others):
    assert alignlab("train", *words) == 2
    told = capsys.readouterr().err
    listed = set(told.partition("with one of: ")[2].partition(";")[0].split(", "))
    assert "it should be a function of" in told
    assert fits <= listed and not listed & others
