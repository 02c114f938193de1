"""Every option composes, with every method where it matters, and passes the schema; config files stay short."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignlab.cli.composition.compose import ROOT, compose, prepare
from alignlab.config import compat, schema
from alignlab.errors import InputError
from alignlab.run_folder.naming import name_of

CONF = ROOT / "conf"
CROSSED = ("method", "model", "data", "peft", "strategy", "optimizer", "scheduler", "logger", "callbacks", "trainer")
NEEDED = {
    "callbacks=wins": ["callbacks.wins.endpoint=http://127.0.0.1:8000/v1", "callbacks.wins.model=judge"],
    "strategy=deepspeed_z3_nvme": ["strategy.config.zero_optimization.offload_optimizer.nvme_path=/disk"],
    "data=base": ["+data/part@data.source=arithmetic", "data.path=null"],
    "data=jsonl": ["data.path=rows.jsonl"],
    "data=hub": ["data.path=owner/name"],
    "data=registry": ["data.dataset_info=folder", "data.name=rows"],
    "data=mixture": [
        "+data/part@data.source.sources.a=file",
        "data.source.sources.a.path=a.jsonl",
        "+data/part@data.source.sources.b=hub",
        "data.source.sources.b.path=owner/b",
        "data.weights={a: 2, b: 1}",
    ],
}
"""What an option cannot go without."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


METHODS = options("method")
CHOICES = [f"{group}={option}" for group in CROSSED for option in options(group)]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_passes(choice, monkeypatch):
    monkeypatch.setattr(compat, "_has_asynchronous_io", lambda: True)
    crossed = choice.startswith(("model=", "data=", "peft="))
    for method in METHODS if crossed else [None]:
        words = [choice, *NEEDED.get(choice, [])] + ([f"method={method}"] if method else [])
        plain = schema.check(compose(words))
        compat.check(plain)


WHOLE = [*CHOICES, *(f"experiments={name}" for name in options("../experiments"))]


@pytest.mark.parametrize("choice", WHOLE)
def test_beside_any_option_only_the_misspelt_key_is_refused(choice):
    """By the check of names alone, before anything heavy is imported."""
    words = [choice, *NEEDED.get(choice, []), "seeed=1"]
    with pytest.raises(InputError) as refused:
        schema.refuse_misspelt(compose(words), schema.SECTIONS, prepare(["seeed=1"]))
    assert str(refused.value).startswith("seeed=1: ")


@pytest.mark.parametrize("name", options("../experiments"))
def test_every_experiment_passes(name):
    engine = [f"rollout.vllm_executable={sys.executable}"] if name.endswith("_vllm") else []
    compat.check(schema.check(compose([f"experiments={name}", *engine])))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "grpo"])
def test_every_stage_of_the_recipe_passes(stage):
    reward = ["method.reward.reward_model.path=RUN"] if stage == "grpo" else []
    compat.check(schema.check(compose([f"experiments=recipe/{stage}", *reward])))


@pytest.mark.parametrize("name", options("../sweeps"))
def test_every_sweep_composes(name):
    schema.check(compose([f"sweeps={name}"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_one_name(method):
    """The folder of its runs and the tables of results have the word that one types."""
    assert name_of(OmegaConf.load(CONF / "method" / f"{method}.yaml")._target_) == method


def test_the_default_run_is_sft_of_pocket_on_arithmetic():
    plain = schema.check(compose())
    assert plain["method"]["_target_"] == "alignlab.methods.sft.SFT"
    assert plain["model"]["path"] == "pocket"
    assert plain["data"]["source"]["_target_"] == "alignlab.data.sources.arithmetic.Arithmetic"
    assert plain["peft"] is None


def test_rates_that_suit_a_method_on_a_model_are_taken():
    """A group that Hydra cannot find is silently none where it is optional; what is typed wins."""
    for path in sorted((CONF / "pair" / "model").glob("*/*.yaml")):
        words = [f"model={path.parent.name}", f"method={path.stem}"]
        assert compose(words) != compose([*words, "~pair/model@_global_"]), words
    assert compose([*words, "optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize("rollout", ["hf", "vllm", "data"])
def test_a_sampler_gets_the_sizes_that_suit_it_on_a_model_and_no_key_of_another_sampler(rollout):
    words = ["method=grpo", f"rollout={rollout}"]
    words += ["method/reward=[given]", "method.reward_weights=null"] if rollout == "data" else []
    found = schema.check(compose(words))["rollout"]
    assert found["max_completion_tokens"] == (1024 if rollout == "data" else 64)
    assert found.get("batch_size") == (None if rollout == "data" else 1024)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_weights_of_one_s_own_get_no_rates_of_another_model(method):
    plain = compose([f"method={method}", "model=scratch"])
    own = compose([f"method={method}", "model.path=MODEL", "peft=lora"])
    assert (own.optimizer.lr, own.trainer, own.data.global_batch_size) == (
        plain.optimizer.lr, plain.trainer, plain.data.global_batch_size,
    )  # fmt: skip


def test_contracted_keys_are_there():
    plain = schema.check(compose(["peft=lora"]))
    keys = """method model.path model.dtype model.attn_implementation peft.r strategy._target_ data.path data.format
        data.columns data.max_tokens_per_sequence data.batch_size_per_device data.global_batch_size data.packing
        data.truncation data.streaming optimizer.lr scheduler.warmup_steps trainer.max_steps trainer.max_epochs
        trainer.devices trainer.num_nodes trainer.precision trainer.gradient_clip_val checkpoint.every_n_steps
        checkpoint.keep_last logger seed run_dir resume overwrite init_from debug tags"""
    missing = object()
    tree = OmegaConf.create(plain)
    assert [key for key in keys.split() if OmegaConf.select(tree, key, default=missing) is missing] == []


def test_a_choice_brings_what_it_asks_of_other_groups():
    assert compose(["peft=prefix"]).data.packing is False
    assert compose(["peft=lora"]).data.packing is True
    with pytest.raises(InputError, match="cannot be packed"):
        compat.check(schema.check(compose(["peft=prefix", "data.packing=true"])))


def test_several_loggers():
    assert set(compose(["logger=[wandb,tensorboard]"]).logger) == {"wandb", "tensorboard"}
    assert compose(["logger=none"]).logger == {}


def said_by(tree, path=""):
    """Dotted keys and values of a file, besides its defaults list."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from said_by(value, f"{path}.{key}" if path else key)
        elif key != "defaults" and "${" not in str(value):
            yield f"{path}.{key}" if path else key, str(value)


@pytest.mark.parametrize(
    "part",
    sorted(CONF.rglob("part/*.yaml")),
    ids=lambda path: str(path.relative_to(CONF)),
)
def test_what_options_share_is_said_once(part):
    """No other file of the group says what a part says; an option takes it from there, whole."""
    tree = OmegaConf.to_container(OmegaConf.load(part))
    shared, target = {(key, value) for key, value in said_by(tree) if key[0] != "_"}, tree.get("_target_", "")
    for path in sorted((CONF / part.relative_to(CONF).parts[0]).rglob("*.yaml")):
        if path != part and target in path.read_text(encoding="utf-8"):  # of another class it may be another thing
            tree = OmegaConf.to_container(OmegaConf.load(path))
            said = set(said_by(tree)) | set(said_by(tree.get("loss", {})) if "method" in path.parts else ())
            assert shared & said == set(), path


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_config_files_name_no_experiment(path: Path):
    text = path.read_text(encoding="utf-8")
    assert all(f"experiments/{name}" not in text for name in options("../experiments"))


def test_named_runs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "optimizer.lr" in str(OmegaConf.load(ROOT / "sweeps" / "learning_rate.yaml").hydra.sweeper.params)
    assert compose(["sweeps=learning_rate"]).method._target_ == "alignlab.methods.sft.SFT"
