"""What does not exist, is of the wrong type or out of range is refused, together and with the nearest real name."""

from pathlib import Path

import lightning
import pytest
import torch

from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.build import build, build_all
from alignlab.config.schema.values import OPTIONS
from alignlab.config.target import locate
from alignlab.errors import InputError, InputErrors


def refused(*words: str, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        schema.check(compose(words, **options))
    return caught.value


@pytest.fixture
def folder(tmp_path):
    """A folder of options of somebody else."""

    def write(name: str, text: str):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("peft.r=8", "Type peft=lora, or another option, beside the keys below it."),
        ("method.loss=dft", "Type method/loss=dft."),
        ("~logger", "Type logger=none, or another option."),
        (
            "logger=wandb,csv",
            "Type 'logger=[wandb,csv]' for all together, or train --multirun logger=wandb,csv for one run each.",
        ),
        ("optimizer=adamw,sgd", "one run. Type train --multirun optimizer=adamw,sgd for one run each."),
    ],
)
def test_a_word_that_is_nearly_right_leads_to_the_right_one(word, instead):
    assert str(refused(word)).endswith(instead)


def test_the_options_that_are_advised_exist():
    folder = Path(__file__).parents[2] / "conf"
    assert not [
        path for path, option in OPTIONS.items() if not (folder / path.replace(".", "/") / f"{option}.yaml").is_file()
    ]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["modl=pocket"], "'model'"),
        (["optimizer.lrr=1"], "'optimizer.lr'"),
        (["+optimizer.lrr=1"], "'optimizer.lr'"),
        (["lr=1"], "'optimizer.lr'"),
        (["optimzer.lr=1"], "'optimizer.lr'"),
        (["learning_rate=1"], "'optimizer.lr'"),
        (["gradient_accumulation_steps=4"], "'data.global_batch_size'"),
        (["trainer.max_step=1"], "'trainer.max_steps'"),
        (["trainer.strategy=ddp"], "'strategy'"),
        (["data.pth=x"], "'data.path'"),
        (["data.level=1"], "'data.source.level'"),
        (["method.reductoin=token"], "'method.reduction'"),
        (["peft=qlora", "peft.quantization.load_in_4bi=true"], "'peft.quantization.load_in_4bit'"),
        (["logger.wandb.projekt=x"], "'logger.wandb.project'"),
        (["callbacks.exact_match.num_promts=1"], "'callbacks.exact_match.num_prompts'"),
        (["checkpoint.keep_lst=1"], "'checkpoint.keep_last'"),
        (["strategy=ddp", "strategy.timout_seconds=1"], "'strategy.timeout_seconds'"),
        (["model=pockt"], "'pocket'"),
        (["model=lora"], "peft=lora"),
        (["optimizer=adamww,sgdd"], "'adamw'"),
        (["hydra.swep.dir=x"], "'hydra.sweep.dir'"),
        (["hydra/launcher=basik"], "'basic'"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(words, nearest):
    assert nearest in str(refused(*words))


def test_a_key_that_only_the_signature_knows_needs_no_plus():
    assert schema.check(compose(["peft=lora", "peft.bias=all"]))["peft"]["bias"] == "all"


def test_a_typo_in_an_experiment_file_is_refused(folder):
    path = folder("experiments/mine", "# @package _global_\noptimizer: {lrr: 1}\ndata: {source: {levle: 2}}\n")
    error = refused("experiments=mine", config_dir=path)
    assert "'optimizer.lr'" in str(error) and "'data.source.level'" in str(error)


def test_an_unknown_option_in_an_experiment_file_is_refused(folder):
    path = folder("experiments/mine", "# @package _global_\ndefaults: [{override /optimizer: adamww}]\n")
    error = refused("experiments=mine", config_dir=path)
    assert error.asked == "optimizer=adamww" and "'adamw'" in error.instead


def test_broken_yaml_is_refused_with_its_line(folder):
    path = folder("experiments/mine", "# @package _global_\noptimizer: {lr: 1\n")
    assert "line" in refused("experiments=mine", config_dir=path).asked


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("seed=foo", "integer"),
        ("seed=-1", "greater than or equal to 0"),
        ("optimizer.lr=fast", "number"),
        ("optimizer.lr=-1", "greater than 0"),
        ("optimizer.lr=1e400", "finite"),
        ("scheduler.min_lr_ratio=nan", "finite"),
        ("optimizer.lr='\"1e-3\"'", "number"),
        ("optimizer.betas=[0.9,1.5]", "less than 1"),
        ("trainer.precision=16mixed", "'16-mixed'"),
        ("trainer.max_steps=true", "integer"),
        ("trainer.devices=0", "greater than or equal to 1"),
        ("data.order=random", "'shuffled', 'as_is', 'by_length' or 'curriculum'"),
        ("data.validation_size=-1", "greater than 0"),
        ("data.max_tokens_per_sequence=1", "greater than or equal to 2"),
        ("data.source.level=9", "less than or equal to 5"),
        ("checkpoint.keep_last=0", "greater than or equal to 1"),
        ("method.neftune_alpha=-1", "greater than or equal to 0"),
        ("scheduler.min_lr_ratio=2", "less than or equal to 1"),
        ("tags=[a,3]", "string"),
        ("debug=3", "boolean"),
        ("peft.r=4", "_target_"),
        ("callbacks.mine={patience: 3}", "_target_"),
    ],
)
def test_wrong_types_and_ranges_name_field_value_and_range(word, why):
    error = refused(word)
    assert error.asked.startswith(word.split("=")[0].split(".")[0]) and why in error.why


def test_a_search_path_that_is_none_is_refused():
    assert refused("hydra.searchpath=5").asked == "hydra.searchpath=5"


def test_all_faults_are_reported_together():
    error = refused("optimizer.lrr=3", "seed=foo", "data.order=random", "method._target_=alignlab.methods.sft.SFTT")
    assert isinstance(error, InputErrors) and len(error.errors) == 4


def test_a_value_that_must_be_given_is_asked_for():
    assert refused("data=jsonl").asked == "data.path"
    assert "data.path=VALUE" in refused("data=hub").instead


def test_a_broken_interpolation_is_refused():
    assert "nope" in refused("run_dir=${nope}").why


def test_a_target_that_cannot_be_imported_is_named():
    assert "'nolab' cannot be imported" in refused("method._target_=nolab.MyMethod").why
    assert "'SFT'" in refused("method._target_=alignlab.methods.sft.SFFT").instead


MINE = """
from typing import Annotated
from pydantic import Field
from alignlab.methods.sft import SFT

class Mine(SFT):
    def __init__(self, *, strength: Annotated[float, Field(ge=0)], **rest):
        super().__init__(**rest)
        self.strength = strength
"""


def test_a_method_from_outside_passes_and_is_checked(folder, tmp_path, monkeypatch):
    (tmp_path / "mylab_methods.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = folder("method/mine", "defaults: [sft, _self_]\n_target_: mylab_methods.Mine\nstrength: 0.5\n")
    assert schema.check(compose(["method=mine"], config_dir=path))["method"]["strength"] == 0.5
    assert "greater than or equal to 0" in refused("method=mine", "method.strength=-1", config_dir=path).why
    assert "'method.strength'" in refused("method=mine", "method.strenght=1", config_dir=path).instead
    assert "'method.reduction'" in refused("method=mine", "method.reductoin=x", config_dir=path).instead


class Thing(lightning.Callback):
    def __init__(self, *, size: int, parts=None, inner: "Thing | dict | None" = None, **further):
        if size < 0:
            raise ValueError("size is negative")
        self.size, self.parts, self.inner = size, parts, inner


THING = f"{__name__}.Thing"


def make(node, **extra):
    return build("callbacks.thing", node, **extra)


def test_build_makes_nested_objects_and_hands_live_ones_over_untouched():
    live = object()
    made = make({"_target_": THING, "size": 1, "inner": {"_target_": THING, "size": 2}}, parts=live)
    assert (made.size, made.inner.size) == (1, 2) and made.parts is live
    assert type(make({"_target_": THING, "size": 1, "inner": {"a": [1]}}).inner) is dict
    assert build("callbacks.thing", None) is None


def test_build_partial_waits_for_the_rest():
    waiting = build("optimizer", {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert waiting([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5


def test_build_refuses_missing_arguments_and_what_the_target_refuses():
    with pytest.raises(InputError, match="it also needs size"):
        make({"_target_": THING})
    with pytest.raises(InputError, match="size is negative"):
        make({"_target_": THING, "size": -1})


def test_build_all_leaves_out_null_and_gives_extras_to_those_who_take_them():
    timer = {"_target_": "lightning.pytorch.callbacks.Timer", "duration": {"seconds": 3}}
    made = build_all("callbacks", {"a": {"_target_": THING, "size": 1}, "b": None, "c": timer}, parts=5)
    assert made["a"].parts == 5 and list(made) == ["a", "c"]


def test_locate_finds_modules_that_their_package_does_not_import():
    assert locate("alignlab.losses.sft.nll").__name__ == "nll"
