"""Weights, adapters and checkpoints that are pickles run nothing, and are refused in words."""

import json
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from alignlab.distributed.strategies.reader import Reader
from alignlab.errors import InputError
from alignlab.models.load import Pretrained
from alignlab.models.locations import POCKET, locate
from alignlab.models.reward import open_reward_model
from alignlab.rewards.external import PythonReward


class Acting:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def write(path, content, form):
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.fixture
def folder(tmp_path):
    """The embedded model without its weights."""
    shutil.copytree(POCKET, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


def pretrained(path):
    settings = {"dtype": "float32", "attn_implementation": "auto", "gradient_checkpointing": False, "compile": False}
    return Pretrained(path=str(path), trust_remote_code=False, revision=None, **settings)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_model_that_would_run_something_is_refused_by_its_file(folder, tmp_path, form, name):
    write(folder / name, {"w": torch.zeros(2), "x": Acting(tmp_path / "made")}, form)
    with pytest.raises(InputError, match=f"{name} is a pickle that holds more than tensors.*safetensors"):
        pretrained(folder).load_tokenizer()
    with pytest.raises(InputError, match="holds more than tensors"):
        open_reward_model(str(folder), "float32", "method.reward.reward_model.path")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_an_adapter_that_would_run_something_is_refused_by_its_file(tmp_path, form):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(POCKET), "target_modules": ["q_proj"]})
    )
    write(adapter / "adapter_model.bin", {"x": Acting(tmp_path / "made")}, form)
    with pytest.raises(InputError, match=r"adapter_model.bin is a pickle that holds more than tensors"):
        locate(str(adapter))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_of_tensors_alone_is_opened(folder, form):
    from safetensors.torch import load_file

    write(folder / "pytorch_model.bin", load_file(POCKET / "model.safetensors"), form)
    source = pretrained(folder)
    assert source.load_model(source.load_tokenizer()).num_parameters() > 0


def test_a_checkpoint_whose_table_of_contents_would_run_something_is_refused(tmp_path):
    dcp.save({"weights/a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, checkpoint_id=tmp_path / "state")
    assert set(Reader(tmp_path / "state").read_metadata().state_dict_metadata) == {"weights/a", "b"}
    found = {"weights/a": torch.zeros(3)}
    dcp.load(found, storage_reader=Reader(tmp_path / "state"), no_dist=True)
    assert found["weights/a"].tolist() == [1, 1, 1]
    for content in (Acting(tmp_path / "made"), torch.load, {"a": 1}, print):
        (tmp_path / "state" / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match="its table of contents is not one that PyTorch writes"):
            Reader(tmp_path / "state").read_metadata()
    (tmp_path / "state" / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="table of contents"):
        Reader(tmp_path / "state").read_metadata()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("os:system", "subprocess:run", "cProfile:run", "os.path:exists", "pandas:read_pickle", "torch:load"),
        *("torch:save", "numpy:load", "datasets:load_dataset", "transformers:pipeline"),
    ],
)
def test_only_rewards_are_rewards(path):
    with pytest.raises(InputError, match=r"standard library|no argument named completions"):
        reward = PythonReward(path=path)
        getattr(reward, "prepare", lambda: None)()
