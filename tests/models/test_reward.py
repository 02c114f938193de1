"""Opening reward models frozen: whole, as adapters, of any architecture; and what is no reward model."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models import adapters, export
from alignlab.models.reward import context_of, open_reward_model, rewards_of
from alignlab.models.scoring import sequence_scores
from alignlab.types.rows import TokenRow
from tests.models.test_export import KINDS, disturb, pretrained, scratch
from tests.models.test_heads import reward_model

ROWS = [TokenRow(tokens, [False] * len(tokens), [[0, len(tokens)]], "") for tokens in ([7, 8, 9], [5], [9, 4, 2, 6])]
BATCH = collate(ROWS, packing=False)


@pytest.fixture(scope="module")
def tokenizer():
    return scratch("llama").load_tokenizer(lambda: ["one two three one two three"])


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Saves a model under a name; gives the folder."""

    def save(model, name="model"):
        export.save(model, tokenizer, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("kind", [None, "lora", "ia3", "prefix"])
def test_what_was_trained_scores_alike_and_is_frozen(saved, tokenizer, kind):
    base = saved(scratch("llama").load_model(tokenizer), "base")
    model = pretrained(base).load_model(tokenizer, head="reward")
    model = disturb(adapters.attach(model, KINDS[kind]()) if kind else model)
    opened, own_tokenizer = open_reward_model(str(saved(model)), "auto", "path")
    with torch.no_grad():
        expected = sequence_scores(model.eval(), BATCH)
    torch.testing.assert_close(rewards_of(opened, BATCH), expected)
    assert expected.std() > 1e-3 and not rewards_of(opened, BATCH).requires_grad
    assert not opened.training and not any(p.requires_grad for p in opened.parameters())
    assert own_tokenizer.chat_template == tokenizer.chat_template
    assert context_of(opened) == model.config.max_position_embeddings


def test_an_encoder_is_asked_by_its_own_forward(saved):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = disturb(BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=1, **sizes))).eval()
    opened, _ = open_reward_model(str(saved(encoder)), "auto", "path")
    with torch.no_grad():
        alone = torch.cat([encoder(torch.tensor([row.tokens])).logits[0] for row in ROWS])
    torch.testing.assert_close(rewards_of(opened, BATCH), alone, atol=1e-6, rtol=1e-5)


def test_weights_can_be_read_in_another_number_format(saved, tokenizer):
    folder = saved(scratch("llama").load_model(tokenizer, head="reward"))
    opened, _ = open_reward_model(str(folder), "bfloat16", "path")
    assert opened.dtype == torch.bfloat16 and rewards_of(opened, BATCH).dtype == torch.float32


@pytest.mark.parametrize(
    ("holds", "why"),
    [
        ("language model", "it holds LlamaForCausalLM, which does not score sequences"),
        ("adapter of a language model", "its adapter is for a language model"),
        ("head with two numbers", "its head gives 2 numbers per sequence"),
        ("no head", r"its files lack score\.weight, which would be random"),
        ("broken files", "it cannot be read"),
        ("nothing", r"no config\.json and no adapter_config\.json"),
    ],
)
def test_what_is_no_reward_model_is_refused_with_what_to_type(saved, tokenizer, tmp_path, holds, why):
    folder = MAKE[holds](saved, tokenizer, tmp_path)
    with pytest.raises(InputError, match=why) as caught:
        open_reward_model(str(folder), "auto", "method.reward.reward_model.path")
    assert caught.value.asked == f"method.reward.reward_model.path={folder}"
    assert "method=reward_model" in caught.value.instead


def test_a_declared_head_that_the_files_lack_is_not_drawn_anew(saved, tokenizer, tmp_path):
    with pytest.raises(
        InputError, match=r"its config\.json is that of a reward model, and its files lack score\.weight"
    ):
        pretrained(headless(saved, tokenizer, tmp_path)).load_model(tokenizer, head="reward")


def of_a_language_model(saved, tokenizer, tmp_path):
    return saved(scratch("llama").load_model(tokenizer))


def adapter_of_a_language_model(saved, tokenizer, tmp_path):
    base = saved(scratch("llama").load_model(tokenizer), "base")
    return saved(adapters.attach(pretrained(base).load_model(tokenizer), KINDS["lora"]()))


def headless(saved, tokenizer, tmp_path):
    folder = of_a_language_model(saved, tokenizer, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def broken(saved, tokenizer, tmp_path):
    folder = saved(reward_model())
    (folder / "config.json").write_text("{")
    return folder


def empty(saved, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


MAKE = {
    "language model": of_a_language_model,
    "adapter of a language model": adapter_of_a_language_model,
    "head with two numbers": lambda saved, tokenizer, tmp_path: saved(reward_model(num_labels=2)),
    "no head": headless,
    "broken files": broken,
    "nothing": empty,
}
