"""The README.md of a trained model."""

import pytest
import yaml

from alignlab.config.sources import data_sets
from alignlab.models.model_card import CardFacts, metadata, model_card

FACTS = {
    **{"name": "run", "base": "Qwen/Qwen2.5-0.5B", "adapter": "lora", "method": "dpo", "data": "openai/gsm8k"},
    **{"hub_data": ("openai/gsm8k",), "command": "alignlab train method=dpo", "details": {"seed": 1, "loss": "a|b"}},
    **{"before": {"val/loss": 0.6931}, "after": {"val/nll": 1.5, "val/loss": 0.25}},
}


def test_it_names_base_data_method_command_and_results():
    text = model_card(CardFacts(**FACTS))
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "library_name": "peft",
        "tags": ["alignlab", "dpo", "lora"],
        "datasets": ["openai/gsm8k"],
    }
    assert body.startswith("\n# run\n\nA lora adapter for `Qwen/Qwen2.5-0.5B`, trained by dpo on openai/gsm8k")
    assert "```bash\nalignlab train method=dpo\n```" in body and "| loss | a\\|b |" in body
    assert body.endswith("| val/loss | 0.6931 | 0.25 |\n| val/nll | – | 1.5 |\n")


@pytest.mark.parametrize("base", ["pocket", "scratch", "/models/qwen", "./qwen"])
def test_the_hub_is_told_of_its_own_names_only(base):
    found = metadata(CardFacts(**FACTS | {"base": base, "adapter": None, "hub_data": ()}))
    assert found == {"library_name": "transformers", "tags": ["alignlab", "dpo"]}


def test_a_folder_with_the_form_of_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FACTS["base"]).mkdir(parents=True)
    assert "base_model" not in metadata(CardFacts(**FACTS))


def test_the_data_sets_of_a_source():
    file = {"_target_": "alignlab.data.sources.local.Files", "path": ["a.jsonl", "b.jsonl"]}
    hub = {"_target_": "alignlab.data.sources.local.Hub", "path": "openai/gsm8k"}
    own = {"_target_": "alignlab.data.sources.arithmetic.Arithmetic"}
    mixture = {"_target_": "alignlab.data.sources.local.Mixture", "sources": {"a": file, "b": hub, "c": own}}
    assert data_sets(mixture) == {"a.jsonl": False, "b.jsonl": False, "openai/gsm8k": True, "arithmetic": False}
