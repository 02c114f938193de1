"""Files as users bring them, run from the command line: DeepSpeed files, rewards, dialogues, earlier stages."""

import json

import pytest

from tests.commands import QUIET, alignlab, metrics, start, summary
from tests.data.tokenise.test_turns import QWEN3

SHORT = [*QUIET, "callbacks=none", "trainer.max_steps=2", "data.validation_size=4"]
TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- DeepSpeed --------------------------------------------------------------------------------------------------------

OFFLOAD = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_print": 50,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10, "warmup_num_steps": 2}},
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "overlap_comm": True,
    },
    "gradient_clipping": 1.0,
    "wall_clock_breakdown": True,
    "steps_per_checkpoint": 1000,
    "activation_checkpointing": {"partition_activations": True},
}


def run_with(file, strategy, *words):
    process = start(*SHORT, f"strategy={strategy}", f"strategy.config_file={file}", "run_dir=run", *words)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed


@pytest.mark.slow
def test_a_deepspeed_file_with_all_its_sections_runs(folder):
    (folder / "file.json").write_text(json.dumps(OFFLOAD))
    printed = run_with("file.json", "deepspeed_z3_offload", *TWO)
    assert "wall_clock_breakdown of file.json is left out" in printed
    assert "is deprecated" not in printed
    config = (folder / "run" / "config.yaml").read_text()
    assert "gradient_checkpointing: true" in config and "every_n_steps: 1000" in config
    assert summary(folder / "run")["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy", "words"),
    [
        ("one_gpu_zero1", "deepspeed_z1", []),
        ("one_node_zero2", "deepspeed_z2", TWO),
        ("many_nodes_zero3_cpu_offload", "deepspeed_z3_offload", TWO),
    ],
)
def test_shared_deepspeed_files_run_in_bfloat16(folder, shared, name, strategy, words):
    file = json.loads((shared / "data" / "deepspeed" / f"{name}.json").read_text())
    file["bf16"] = {"enabled": file.pop("fp16")["enabled"]}
    (folder / "file.json").write_text(json.dumps(file))
    run_with("file.json", strategy, *words)
    assert summary(folder / "run")["steps"] == 2
    first, second = (row["train/lr"] for row in metrics(folder / "run") if "train/lr" in row)
    assert first == 0 and second > 0  # its warm-up begins at a rate of zero


# --- rewards ----------------------------------------------------------------------------------------------------------

REWARDS = """
import re

def digits(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [float(len(re.findall(r"\\d", content))) for content in contents]

def right(prompts, completions, answer, **kwargs):
    asked = [prompt[-1]["content"] for prompt in prompts]
    said = [completion[0]["content"] for completion in completions]
    return [1.0 if want in got and question else 0.0 for question, got, want in zip(asked, said, answer)]
"""


@pytest.mark.parametrize(("function", "style"), [("digits", "auto"), ("right", "auto"), ("right", "messages")])
def test_a_reward_written_for_trl_runs_unchanged(folder, capfd, function, style):
    (folder / "rewards.py").write_text(REWARDS)
    words = ["method/reward=[python]", f"method.reward.python.path=rewards.py:{function}"]
    words += [f"method.reward.python.style={style}", "method.num_completions=4", "data.global_batch_size=4"]
    assert alignlab("train", "method=grpo", *SHORT, *words, "run_dir=run", "logger=csv") == 0
    steps = [row for row in metrics(folder / "run") if "reward/python/mean" in row or "reward/mean" in row]
    assert steps and all(row.get("reward/failed", 0) == 0 for row in steps)


def test_a_reward_that_needs_a_column_which_the_rows_lack_is_refused_before_training(folder, capsys):
    (folder / "rewards.py").write_text("def score(completions, solution):\n    return [0.0 for _ in completions]\n")
    words = ["method/reward=[python]", "method.reward.python.path=rewards.py:score"]
    assert alignlab("train", "method=grpo", *SHORT, *words, "run_dir=run") == 2
    assert "method.reward.python: it needs a column 'solution', and the rows have" in capsys.readouterr().err
    assert not (folder / "run" / "summary.json").exists()


# --- dialogues --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["true", "false"])
def test_dialogues_of_a_template_that_strips_reasoning_train(folder, packing):
    template = QWEN3.replace("<|end|>", "<|eos|>")
    (folder / "thinking.jinja").write_text(template)
    rows = [
        [
            {"role": "user", "content": f"{number}+3?"},
            {"role": "assistant", "content": f"{number + 3}", "reasoning_content": f"{number} and 3"},
            {"role": "user", "content": "And 1 more?"},
            {"role": "assistant", "content": f"{number + 4}", "reasoning_content": f"{number + 3} and 1"},
        ]
        for number in range(16)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps({'messages': turns})}\n" for turns in rows))
    words = ["data=jsonl", "data.path=rows.jsonl", "data.chat_template=thinking.jinja", f"data.packing={packing}"]
    assert alignlab("train", "method=sft", *SHORT, *words, "data.global_batch_size=4", "run_dir=run") == 0
    assert summary(folder / "run")["supervised_tokens"] > 0


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(folder):
    """Words for a file of a few preferences."""
    rows = [{"prompt": f"{number}+3?", "chosen": f"{number + 3}", "rejected": "no"} for number in range(16)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return ["data=jsonl", "data.path=pairs.jsonl", "data.global_batch_size=4"]


def test_a_stage_of_qlora_goes_on_with_its_quantised_base(folder, pairs, capfd):
    assert alignlab("train", "method=sft", "peft=qlora", *SHORT, *pairs, "run_dir=first") == 0
    recorded = json.loads((folder / "first" / "model" / "quantization_config.json").read_text())
    assert recorded["load_in_4bit"] is True
    for run, peft in (("same", ["peft=qlora"]), ("unsaid", [])):
        assert alignlab("train", "method=dpo", "init_from=first", *peft, *SHORT, *pairs, f"run_dir={run}") == 0
        assert (folder / run / "model" / "quantization_config.json").exists()
        assert summary(folder / run)["steps"] == 2
    assert "the base is quantised as the adapter was trained" in capfd.readouterr().err


def test_other_settings_of_the_same_adapter_are_refused(folder, pairs, capsys):
    assert alignlab("train", "method=sft", "peft=qlora", *SHORT, *pairs, "run_dir=first") == 0
    for other in ("peft.r=4", "peft.target_modules=[q_proj]"):
        words = ["init_from=first", "peft=qlora", other]
        assert alignlab("train", "method=dpo", *words, *SHORT, *pairs, "run_dir=second") == 2
        assert "the weights already have an adapter" in capsys.readouterr().err
