"""Options that must work together with the main job, each as a short real run that writes and reopens its model."""

import json

import pytest
from transformers import AutoTokenizer

from tests.commands import QUIET, alignlab, metrics, summary

SHORT = [
    "trainer.max_steps=3",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=3",
    "data.source.num_train=40",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=4",
]
OPTIONS = {
    "pretrain": ["method=pretrain", "data.max_tokens_per_sequence=64"],
    "pretrain across documents": ["method=pretrain", "data.cross_document_attention=true"],
    "sequence mean": ["method.reduction=sequence"],
    "dft": ["method/loss=dft"],
    "neftune": ["method.neftune_alpha=5"],
    "padded": ["data.packing=false"],
    "eager": ["model.attn_implementation=eager"],
    "checkpointing": ["model.gradient_checkpointing=true"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "bf16 weights": ["model.dtype=bfloat16"],
    "loss on all": ["data.loss_on=all"],
    "streaming": ["data.streaming=true", "data.validation_size=null"],
    "by length": ["data.order=by_length"],
    "curriculum": ["data.order=curriculum", "data.order_column=difficulty"],
    "token limit": ["data.max_tokens_per_micro_batch=100"],
    "collated ahead": ["data.num_workers=1"],
    "several loggers": ["logger=[tensorboard,csv]"],
    "early stopping": ["callbacks=[default,early_stopping]", "callbacks.exact_match=null"],
    "a callback by target": ["callbacks.timer._target_=lightning.pytorch.callbacks.Timer"],
    "max time": ["trainer.max_time=00:00:10:00"],
}
PREFERENCES = {
    "dpo": ["method=dpo"],
    "dpo of three losses": ["method=dpo", "method/loss=[sigmoid,bco_pair,sft]", "method.loss_weights=[0.8,0.2,1.0]"],
    "dpo weighted": ["method=dpo", "method.weighting=wpo", "method.length_desensitisation=0.5"],
    "dpo alpha": ["method=dpo", "method/divergence=alpha_divergence"],
    "dpo precomputed": ["method=dpo", "method.precompute_reference=true"],
    "dpo of an average": ["method=dpo", "method.reference=ema", "peft=lora"],
    "dpo without reference": ["method=dpo", "method.reference=none"],
    "dpo padded": ["method=dpo", "data.packing=false"],
    "group_dpo": ["method=group_dpo"],
    "group_dpo smooth": ["method=group_dpo", "method.loss.inverse_temperature=5", "method.length_normalised=true"],
    "orpo": ["method=orpo"],
    "simpo": ["method=simpo"],
    "cpo": ["method=cpo", "method/loss=hinge"],
    "kto": ["method=kto"],
    "kto precomputed": ["method=kto", "method.precompute_reference=true", "method/loss=apo_zero_unpaired"],
}
FEW = ["method.num_completions=4", "rollout.max_completion_tokens=40", "data.global_batch_size=4"]
ONLINE = {
    "grpo": ["method=grpo", *FEW],
    "grpo held to its start": ["method=grpo", *FEW, "method.kl_coef=0.1", "peft=lora", "method.group_filter=resample"],
    "grpo several rewards": ["method=grpo", *FEW, "method/reward=[exact_answer,xml_format,length]", "method/loss=dapo"],
    "rloo": ["method=rloo", *FEW, "method.reward_kl_coef=0.1", "method.reward_kl_target=1"],
    "ppo": ["method=ppo", *FEW, "method.num_iterations=2"],
    "ppo of two models": ["method=ppo", *FEW, "method.critic=separate", "method.truncated=penalise"],
}
PEFT = ["lora", "rslora", "dora", "qlora", "qlora_8bit", "ia3", "prefix", "llama_adapter"]
OPTIMIZERS = ["adamw_8bit", "adafactor", "sgd", "lion", "muon"]
SCHEDULERS = ["constant", "linear", "wsd", "inverse_sqrt", "polynomial"]
CASES = {
    **OPTIONS,
    **PREFERENCES,
    **ONLINE,
    **{f"peft {name}": [f"peft={name}"] for name in PEFT},
    **{f"pretrain peft {name}": ["method=pretrain", f"peft={name}"] for name in ("lora", "qlora")},
    **{f"optimizer {name}": [f"optimizer={name}"] for name in OPTIMIZERS},
    **{f"scheduler {name}": [f"scheduler={name}"] for name in SCHEDULERS},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", CASES)
def test_runs_and_reopens(case, tmp_path):
    run = tmp_path / "run"
    assert alignlab("train", *QUIET, *SHORT, *CASES[case], f"run_dir={run}") == 0
    assert summary(run)["status"] == "done"
    assert [row["progress/step"] for row in metrics(run)] == [1, 2, 3]
    assert list((run / "model").glob("*.safetensors"))


def test_an_adapter_run_never_writes_the_frozen_base(tmp_path):
    run = tmp_path / "run"
    assert alignlab("train", *QUIET, *SHORT, "peft=lora", f"run_dir={run}") == 0
    base = sum(path.stat().st_size for path in (run / "model").glob("model*.safetensors"))
    state = (run / "checkpoints/last/state.ckpt").stat().st_size
    assert base == 0 and state < 1_500_000


def test_further_training_of_a_run_and_of_its_adapter(tmp_path):
    for name, words in {"full": [], "adapter": ["peft=lora"]}.items():
        first, second = tmp_path / name, tmp_path / f"{name}-again"
        assert alignlab("train", *QUIET, *SHORT, *words, f"run_dir={first}") == 0
        assert alignlab("train", *QUIET, *SHORT, f"init_from={first}", f"run_dir={second}") == 0
        before, after = summary(first)["metrics"]["val/loss"], summary(second)["initial_metrics"]["val/loss"]
        assert after == pytest.approx(before, rel=1e-6)
        assert (second / "model/adapter_config.json").exists() == (name == "adapter")


def test_a_run_repeats_from_its_own_config(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert alignlab("train", *QUIET, *SHORT, "optimizer.lr=3e-4", f"run_dir={first}") == 0
    assert alignlab("train", "--from", first, f"run_dir={second}") == 0
    assert [row["train/loss"] for row in metrics(first)] == [row["train/loss"] for row in metrics(second)]


def test_the_run_folder_holds_everything(tmp_path):
    run = tmp_path / "run"
    words = [*SHORT, "logger=[wandb,tensorboard]", "callbacks.exact_match.num_prompts=4"]
    assert alignlab("train", *words, f"run_dir={run}") == 0
    parts = ["config.yaml", "summary.json", "metrics.csv", "checkpoints/last", "model/config.json", "plots/loss.png"]
    parts += ["model/tokenizer.json", "model/chat_template.jinja", "train.log", "wandb", "tensorboard"]
    assert [part for part in parts if not (run / part).exists()] == []
    result = summary(run)
    assert {"status", "method", "model", "strategy", "peft", "seed", "steps", "epochs", "tokens"} <= result.keys()
    assert 0 <= result["initial_metrics"]["val/exact_match"] <= 1
    assert "tokens_per_second" in json.dumps(result)


def test_the_result_stops_where_its_turns_end(tmp_path):
    """ChatML on a model that knows nothing of it: its turns end in a token that the tokenizer does not call its end."""
    words = ["model=scratch", "model.vocabulary_size=300", "model.config.hidden_size=32", "model.chat_template=null"]
    assert alignlab("train", *QUIET, *SHORT, *words, f"run_dir={tmp_path / 'run'}") == 0
    folder = tmp_path / "run/model"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ends == sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")})
