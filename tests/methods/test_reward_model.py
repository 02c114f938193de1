"""The reward model as a method: what is compared, what its columns do, and what a run leaves behind."""

import dataclasses
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from alignlab.data.batching.collate import collate, totals
from alignlab.methods.reward_model import RewardModel
from alignlab.models.scoring import sequence_scores
from tests.commands import alignlab, metrics, summary
from tests.methods.toy import Rows, fit, make_loader, make_method, rows_for

PLAIN = {"margin_column": None, "weight_column": None, "centring": 0.0}


def make_policy():
    """A reward model of 20 thousand parameters, always the same."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, num_labels=1, **sizes)
    model = LlamaForSequenceClassification._from_config(config, attn_implementation="packed")
    torch.nn.init.normal_(model.score.weight, std=0.2)
    return model


def make(lr=0.1, packing=True, **changes):
    """The method over that policy, under plain SGD."""
    factories = make_method("sft", lr=lr, packing=packing, policy=make_policy).factories
    return RewardModel(factories=factories, **{**PLAIN, **changes})


def rows_with(**columns):
    """Ragged groups, some numeric columns beside each."""
    rows = rows_for("group_dpo")
    return Rows(
        dataclasses.replace(row, columns={name: values(i) for name, values in columns.items()})
        for i, row in enumerate(rows)
    )


def test_the_loss_is_that_of_each_chosen_against_each_of_its_rejected():
    """One by one: -log σ(weight-free lead - margin) + 0.1 (sum)², times the row's weight; 2 to 4 completions a row."""
    rows = rows_with(margin=lambda i: i / 4, weight=lambda i: 1 + i % 3)
    method = make(margin_column="margin", weight_column="weight", centring=0.1)
    method.policy, expected, num_pairs = make_policy(), 0.0, 0
    for i, row in enumerate(rows):
        chosen, *others = sequence_scores(method.policy, collate([row], packing=False)).tolist()
        for rejected in others:
            lead = chosen - rejected - i / 4
            expected += (1 + i % 3) * (math.log1p(math.exp(-lead)) + 0.1 * (chosen + rejected) ** 2)
            num_pairs += 1
    output = method.compute_loss(collate(rows, packing=True))
    (term,) = output.terms
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
    assert term.unit == "pairs" and totals(rows).pairs == len(term.losses) == num_pairs


def test_results_do_not_depend_on_how_a_step_is_cut():
    rows = rows_for("group_dpo")
    whole, steps = fit(make(), make_loader(rows, 8))
    for size, packing in ((4, True), (1, True), (4, False)):
        weights, others = fit(make(packing=packing), make_loader(rows, size, packing=packing))
        assert (weights - whole).norm() < 1e-6 * whole.norm()
        for name in ("train/loss", "rewards/accuracies", "rewards/brier", "rewards/margins"):
            assert others[-1][name] == pytest.approx(steps[-1][name], rel=1e-4, abs=1e-6)


def test_training_tells_the_chosen_from_the_rejected():
    rows = rows_for("group_dpo")
    _, steps = fit(make(lr=0.3), make_loader(rows, 8, num_steps=60))
    assert steps[0]["rewards/accuracies"] < 0.8 < steps[-1]["rewards/accuracies"]
    assert steps[-1]["rewards/brier"] < steps[0]["rewards/brier"]


def test_centring_holds_the_rewards_near_zero():
    rows = rows_for("group_dpo")
    means = {}
    for centring in (0.0, 0.1):
        _, steps = fit(make(lr=0.05, centring=centring), make_loader(rows, 8, num_steps=30))
        means[centring] = abs(steps[-1]["rewards/chosen"] + steps[-1]["rewards/rejected"])
    assert means[0.1] < 0.5 * means[0.0]


SHORT = [
    "method=reward_model",
    "logger=none",
    "trainer.max_steps=3",
    "trainer.max_epochs=-1",
    "data.source.num_train=40",
    "data.source.num_validation=6",
    "data.global_batch_size=8",
    "data.batch_size_per_device=4",
]


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_run_leaves_a_model_that_transformers_scores_alike(tmp_path, monkeypatch, peft):
    """The default callbacks stand: nothing is generated where there is no vocabulary head."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    assert alignlab("train", *SHORT, f"peft={peft}", f"run_dir={run}") == 0
    result = summary(run)
    assert result["status"] == "done"
    assert {"val/rewards/accuracies", "val/rewards/margins", "val/rewards/brier"} <= result["metrics"].keys()
    assert not any("exact_match" in name for row in metrics(run) for name in row)
    again = tmp_path / "again"
    assert alignlab("train", *SHORT, f"init_from={run}", f"run_dir={again}") == 0
    before, after = result["metrics"]["val/loss"], summary(again)["initial_metrics"]["val/loss"]
    assert after == pytest.approx(before, rel=1e-6)
    padded_alike(run / "model", adapter=peft == "lora")


def padded_alike(folder, adapter):
    """Transformers' own pooling, by the pad token's id, gives the same scores in a padded batch and alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = "src/alignlab/assets/pocket" if adapter else folder
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    if adapter:
        model.config.pad_token_id = tokenizer.pad_token_id
        model = PeftModel.from_pretrained(model, folder)
    texts = ["<|user|>2+3<|eos|><|assistant|>5<|eos|>", "<|user|>20+31<|eos|><|assistant|>51<|eos|>"]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
        for side in ("left", "right"):
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
            torch.testing.assert_close(model(**batch).logits, alone, atol=1e-5, rtol=1e-5)
