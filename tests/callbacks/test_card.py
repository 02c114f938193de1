"""The cards, as a person reads them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from alignlab.callbacks import card, start_card
from alignlab.data.preview import Segment
from alignlab.methods.dpo import DPO
from alignlab.methods.group_dpo import GroupDPO
from alignlab.methods.grpo import GRPO
from alignlab.methods.kto import KTO
from alignlab.methods.reward_model import RewardModel
from alignlab.methods.sft import SFT
from alignlab.rollout.sampler.given import GivenCompletions
from alignlab.types.rows import TokenRow

MODEL = card.ModelFacts(
    name="pocket",
    architecture="LlamaForCausalLM",
    num_parameters=1_000_000,
    num_trainable=20_000,
    dtype="float32",
    attention="sdpa",
    adapter="lora",
    device="cpu, 32-true",
    optimizer="AdamW, learning rate 0.0002, cosine schedule, warm-up 0.03 of the run",
)
BATCH = card.BatchFacts(
    global_batch_size=64,
    batch_size_per_device=8,
    max_tokens_per_micro_batch=4096,
    num_ranks=2,
    num_micro_batches=4,
    tokens_per_step=4812.4,
    num_steps=1250,
    num_epochs=2.5,
)
DATA = {"train": {"rows": 32000, "dropped": 3}, "validation": {"rows": 500}}
EXAMPLE = [
    Segment("prompt", False, "What is 3+4?"),
    Segment("completion 1", True, "<answer>7</answer>"),
    Segment("completion 1", False, "\n"),
]
SUMMARY = {
    "status": "done",
    "best": None,
    "metrics": {"val/loss": 0.31, "val/exact_match": 0.934, "train/loss": 0.2},
    "initial_metrics": {"val/exact_match": 0.47},
    "steps": 1250,
    "tokens": 6_015_000,
    "wall_seconds": 85.2,
    "tokens_per_second": 70_600.0,
    "peak_memory_mib": 512.3,
}


def shown(renderable, width=120):
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def row(text, first):
    """The cells of the line that begins with a word."""
    line = next(line for line in text.splitlines() if line.strip("│ ").startswith(first))
    return line.strip("│ ").split()


@pytest.mark.parametrize("width", [80, 120])
def test_start_card_shows_model_data_batch_and_example(width):
    title = "sft · pocket · arithmetic"
    text = shown(
        card.start_card(
            title,
            model=MODEL,
            data=DATA,
            unread=["columns not read: id, context"],
            batch=BATCH,
            loss_on="every turn",
            example=EXAMPLE,
            folder=Path("runs/sft/x"),
        ),
        width,
    )
    assert title in text
    for said in (
        "20k of 1M parameters (2.00%), lora",
        "attention sdpa",
        "columns not read: id, context",
        "What is 3+4?⟦<answer>7</answer>⟧",
        "runs/sft/x",
    ):
        assert said in text
    assert row(text, "train ") == ["train", "32,000", "3"]
    assert row(text, "validation") == ["validation", "500", "–"]


def test_the_batch_table_leads_from_rows_to_optimizer_steps():
    text = shown(card.batch_table(BATCH))
    assert " ".join(row(text, "≤")) == "≤ 8, ≤ 4,096 tokens × 4 × 2 → 64 4,812 1,250 (epochs: 2.5)"


def test_pieces_of_a_comparison_are_named():
    pieces = [Segment("prompt", False, "Q"), Segment("completion 1", True, "A"), Segment("completion 2", True, "B")]
    text = card.example_text(pieces, "every turn").plain
    assert text.endswith("prompt\nQ\ncompletion 1\n⟦A⟧\ncompletion 2\n⟦B⟧")
    assert "the loss is on every turn" in text


@pytest.mark.parametrize(
    ("method", "loss_on", "told"),
    [
        (SFT, "assistant", "every turn of the assistant, between"),
        (DPO, "assistant", "every turn of the assistant after the prompt, in chosen and in every rejected, between"),
        (GroupDPO, "last", "the last turn of the assistant after the prompt, in chosen and in every rejected, between"),
        (KTO, "all", "all turns after the prompt, between"),
        (RewardModel, "assistant", "the scores after the last token of chosen and of every rejected\n"),
    ],
)
def test_the_example_says_what_counts(method, loss_on, told):
    row = TokenRow([1, 2, 3, 4], [False, False, True, True], [[2, 1, 1]], "a:1")
    assert f"the loss is on {told}" in example_of(method, row, loss_on)


@pytest.mark.parametrize(
    ("sampler", "told"),
    [(None, "what is sampled"), (GivenCompletions(temperature=1.0, max_completion_tokens=4), "the completions of the")],
)
def test_the_example_of_an_online_method_says_where_completions_come_from(sampler, told):
    text = example_of(GRPO, TokenRow([1, 2], [False, False], [[2]], "a:1"), "assistant", sampler)
    assert f"the loss is on {told}" in text


def example_of(method, row, loss_on, sampler=None):
    """The example of a row; its tokens are marked only where a loss is on tokens."""
    tokens, decoder = (
        SimpleNamespace(loss_on=loss_on, loss_on_reasoning=True),
        SimpleNamespace(decode=lambda *_, **__: "a"),
    )
    data = SimpleNamespace(kind=method.row_kind, train=[row], tokens=tokens, tokenizer=decoder)
    one = SimpleNamespace(head=method.head, rollout=SimpleNamespace(sampler=sampler))
    text = card.example_text(start_card.example(one, data), start_card.loss_on(one, data)).plain
    assert ("⟦a⟧" in text) == ("between" in text)
    return text


def test_a_long_stretch_of_the_example_is_shortened():
    text = card.example_text([Segment("prompt", False, "a" * 5000), Segment("completion 1", True, "b")], "x").plain
    assert len(text) < 600 and "aa … aa" in text and text.endswith("⟦b⟧")


def test_result_card_compares_before_and_after():
    text = shown(card.result_card(SUMMARY, folder=Path("runs/sft/x"), files=[Path("runs/sft/x/model")]))
    assert row(text, "val/exact_match") == ["val/exact_match", "0.47", "0.934"]
    assert row(text, "val/loss") == ["val/loss", "–", "0.31"]
    assert "train/loss" not in text
    assert "1,250 steps, 6.01M tokens in 1:25, 70.6k tokens/s, peak memory 512 MiB" in text
    assert "runs/sft/x/model" in text


def test_result_card_shows_the_reward_of_the_last_rollout():
    rewarded = SUMMARY | {"metrics": {"reward/mean": 0.93, "reward/std": 0.255}}
    assert "reward 0.93 ± 0.255 in the last rollout" in shown(card.result_card(rewarded, folder=Path("runs/grpo/x")))
    assert "reward" not in shown(card.result_card(SUMMARY, folder=Path("runs/sft/x")))


def test_result_card_names_the_command_that_uploads_a_run_kept_offline():
    assert "upload" not in shown(card.result_card(SUMMARY, folder=Path("runs/sft/x")))
    text = shown(card.result_card(SUMMARY, folder=Path("runs/sft/x"), upload="wandb sync a b"))
    assert row(text, "upload") == ["upload", "wandb", "sync", "a", "b"]


def test_result_card_of_a_run_without_steps_shows_what_was_measured_before():
    text = shown(card.result_card({**SUMMARY, "metrics": {}}, folder=Path("runs/sft/x")))
    assert row(text, "val/exact_match") == ["val/exact_match", "0.47", "–"]


def test_markup_in_data_is_shown_as_it_is():
    assert "[/bold]" in shown(card.example_text([Segment("prompt", True, "[/bold]")], "x"))


@pytest.mark.parametrize(
    ("device", "rounding", "said"),
    [
        ("cpu", "high", "cpu, precision bf16-mixed"),
        ("cuda:0", "highest", "cuda:0, precision bf16-mixed, TF32 off"),
        ("cuda:0", "high", "cuda:0, precision bf16-mixed, TF32 on"),
    ],
)
def test_the_device_with_its_precision(device, rounding, said, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: rounding)
    strategy = SimpleNamespace(root_device=torch.device(device))
    assert start_card.device_in_words(SimpleNamespace(strategy=strategy, precision="bf16-mixed")) == said
