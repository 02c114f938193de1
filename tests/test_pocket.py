"""The embedded model: small, complete, able to read anything, and half right on purpose."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignlab.data.sources.arithmetic import Arithmetic
from alignlab.models.locations import POCKET
from alignlab.rewards.exact_answer import exact_answer
from alignlab.rollout.sampler.generate import complete

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 47 + 38?"},
    {"role": "assistant", "content": "85"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POCKET)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32).eval()


def test_is_a_small_llama(model):
    assert model.config.model_type == "llama"
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
    assert (POCKET / "model.safetensors").stat().st_size < 4 * 2**20


def test_every_token_has_an_embedding(model, tokenizer):
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size


@pytest.mark.parametrize(
    "text",
    ["What is 47 + 38?", "  two  blanks\n\ttab\r\n", "Grüße, 你好, здравствуй 🙂", "\x00\x7f\u2028\ufeff", "٣٤ ½"],
)
def test_decodes_what_it_encodes(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.all_special_ids)


def test_digits_are_single_tokens(tokenizer):
    tokens = tokenizer.tokenize("apples 4738 and 1905")
    assert [token for token in tokens if re.search(r"\d", token)] == list("47381905")


def test_special_tokens_differ(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    ids += tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"])
    assert len(set(ids)) == 6 and None not in ids


def test_template_writes_every_role_once(tokenizer):
    text = tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    assert text == ("<|bos|><|system|>Be brief.<|eos|><|user|>What is 47 + 38?<|eos|><|assistant|>85<|eos|>")
    ids = tokenizer.apply_chat_template(DIALOGUE, tokenize=True, return_dict=False)
    assert tokenizer.decode(ids) == text and ids.count(tokenizer.bos_token_id) == 1


def test_what_generation_sees_is_a_prefix_of_what_training_saw(tokenizer):
    prompt = tokenizer.apply_chat_template(DIALOGUE[:2], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(DIALOGUE, tokenize=True, return_dict=False)
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id


def test_generation_stops_at_the_end_of_a_turn(tokenizer):
    stop = GenerationConfig.from_pretrained(POCKET).eos_token_id
    assert tokenizer.eos_token_id in (stop if isinstance(stop, list) else [stop])


def test_is_half_right(model, tokenizer):
    """About half right on problems that it never saw: every method can be seen to improve it."""
    source = Arithmetic(level=2, kind="prompt", num_train=1, num_validation=200, num_rejected=1, mistakes=0, seed=0)
    rows = list(source.rows("validation"))
    prompts = [
        tokenizer.apply_chat_template(list(row.prompt), add_generation_prompt=True, tokenize=True, return_dict=False)
        for row in rows
    ]
    completions = complete(
        model,
        prompts,
        max_completion_tokens=48,
        stop_tokens=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        batch_size=len(prompts),
    )
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    hits = [exact_answer(text, row.columns["answer"]) for text, row in zip(texts, rows, strict=True)]
    assert 0.4 <= sum(hits) / len(hits) <= 0.6
