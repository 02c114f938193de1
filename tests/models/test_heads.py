"""Reward heads: where a sequence is read, where a new head comes from, and that head and adapter are saved together."""

import logging

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models import adapters, export, scoring
from alignlab.models.heads import draw_head, head_of, set_pad_token
from alignlab.types.batch import MicroBatch
from alignlab.types.rows import TokenRow
from tests.models.conftest import ARCHITECTURES
from tests.models.test_export import IDS, KINDS, MERGEABLE, NF4, disturb, pretrained, publish, scratch

SCORED = [name for name in ARCHITECTURES if name not in ("granite", "cohere")]
TREES = [[[3, 5, 2, 9]], [[0, 7], [0, 2]], [[4, 2, 9, 30]], [[30, 5]], [[1, 1]]]


@pytest.fixture(scope="module")
def rows():
    """Trees of tokens without the pad token 0; a sequence may end in anything else."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for groups in TREES:
        size = sum(map(sum, groups))
        tokens = torch.randint(1, 101, (size,), generator=draw).tolist()
        made.append(TokenRow(tokens, [True] * size, groups, origin=""))
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return scratch("llama").load_tokenizer(lambda: ["one two three one two three"])


def reward_model(model_type="llama", implementation="packed", num_labels=1):
    """Tiny, with weights large enough that every token matters."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    keys = {**sizes, "intermediate_size": 64, "vocab_size": 101, "pad_token_id": 0, "num_labels": num_labels}
    config = AutoConfig.for_model(model_type, **{**keys, **ARCHITECTURES[model_type]})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def paths(row):
    """Each prompt with one of its completions, as plain tokens."""
    start = 0
    for prompt, *completions in row.groups:
        before = start + prompt
        for length in completions:
            yield row.tokens[start : start + prompt] + row.tokens[before : before + length]
            before += length
        start = before


def padded(sequences, side):
    """A micro-batch of plain sequences, padded on one side."""
    width = max(map(len, sequences)) + 3
    gaps = [width - len(sequence) for sequence in sequences]
    left = [gap if side == "left" else 0 for gap in gaps]
    ids = torch.tensor([[0] * b + s + [0] * (gap - b) for s, b, gap in zip(sequences, left, gaps, strict=True)])
    mask = (ids > 0).long()
    ends = [row * width + b + len(s) - 1 for row, (s, b) in enumerate(zip(sequences, left, strict=True))]
    nothing = torch.zeros(0, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return MicroBatch(inputs, nothing, nothing, nothing, torch.arange(len(ids)), {}, 0, torch.tensor(ends))


@torch.no_grad()
def scores(model, batch):
    return scoring.sequence_scores(model, batch)


@pytest.mark.parametrize("model_type", SCORED)
def test_padding_side_invariance(rows, model_type):
    """A sequence's score is the same alone, beside others, flat, padded on either side, and by Transformers."""
    model, sequences = reward_model(model_type), [path for row in rows for path in paths(row)]
    alone = torch.cat([scores(model, padded([sequence], "right")) for sequence in sequences])
    found = {side: scores(model, padded(sequences, side)) for side in ("left", "right")}
    found["reversed"] = scores(model, padded(sequences[::-1], "left")).flip(0)
    found["flat"] = scores(model, collate(rows, packing=True))
    found["collated"] = scores(model, collate(rows, packing=False))
    found["flat in two batches"] = torch.cat([scores(model, collate(part, True)) for part in (rows[:2], rows[2:])])
    with torch.no_grad():
        found["transformers"] = torch.cat([model(torch.tensor([one])).logits[0] for one in sequences])
        for side in ("left", "right"):
            found[f"transformers {side}"] = model(**padded(sequences, side).inputs).logits[:, 0]
    assert alone.std() > 0.1
    for layout, score in found.items():
        torch.testing.assert_close(score, alone, atol=2e-5, rtol=1e-5, msg=lambda text, at=layout: f"{at}: {text}")


def test_the_gradient_reaches_head_and_decoder_and_is_that_of_the_plain_forward(rows):
    model, weights = reward_model(), torch.linspace(-1, 1, sum(len(group) - 1 for row in TREES for group in row))
    (scoring.sequence_scores(model, collate(rows, packing=True)) * weights).sum().backward()
    ours = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert model.score.weight.grad.norm() > 0 and model.get_input_embeddings().weight.grad.norm() > 0
    model.zero_grad()
    plain = torch.cat([model(torch.tensor([path])).logits[0] for row in rows for path in paths(row)])
    (plain * weights).sum().backward()
    theirs = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_scores_under_mixed_precision_are_not_rounded_to_16_bits(rows):
    model, batch = reward_model(), collate(rows, packing=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(model, batch)
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("packing", [True, False])
def test_verify_accepts_what_is_right(packing):
    assert scoring.verify(reward_model(), packing) < 1e-5


def test_verify_refuses_a_model_that_mixes_documents():
    with pytest.raises(InputError, match=r"data\.packing=false"):
        scoring.verify(reward_model(implementation="sdpa"), packing=True)


# --- where a head comes from ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path, tokenizer):
    """Gives a reward model over saved tiny weights of a language model, with a trained adapter of the kind."""

    def build(kind=None, quantization=None, **keys):
        if not (tmp_path / "base").exists():
            export.save(scratch("llama", **keys).load_model(tokenizer), tokenizer, tmp_path / "base")
        model = pretrained(tmp_path / "base").load_model(tokenizer, quantization, head="reward")
        return disturb(adapters.attach(model, KINDS[kind]())) if kind else model

    return build


def seeded_head(opened, seed):
    torch.manual_seed(seed)
    torch.rand(seed)  # what is drawn before does not matter
    return opened().score.weight


def test_a_language_model_gets_a_small_head_that_follows_from_the_seed(opened, tmp_path, tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        first = seeded_head(opened, 3)
    assert "score head: new, drawn from seed 3" in caplog.text
    assert first.shape == (1, 16) and 0.1 < first.std() < 0.5  # 1 / sqrt(17) = 0.24
    torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(first, opened().score.weight) and not torch.equal(first, seeded_head(opened, 4))
    body = pretrained(tmp_path / "base").load_model(tokenizer).model.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in opened().model.state_dict().items())


def test_the_seed_gives_the_same_head_on_every_device():
    """The default device, here the meta device in place of a GPU, has generators of its own."""
    torch.manual_seed(3)
    models = [reward_model(), reward_model()]
    draw_head(models[0])
    with torch.device("meta"):
        draw_head(models[1])
    assert torch.equal(*(model.score.weight for model in models))


def test_random_weights_get_a_head_from_their_own_seed(tokenizer):
    first, second = (scratch("llama").load_model(tokenizer, head="reward") for _ in range(2))
    assert head_of(first) == "reward" and torch.equal(first.score.weight, second.score.weight)


def test_a_reward_model_keeps_its_head(opened, tokenizer, tmp_path, caplog):
    model = disturb(opened())
    export.save(model, tokenizer, tmp_path / "model")
    caplog.clear()
    again = pretrained(tmp_path / "model").load_model(tokenizer, head="reward")
    assert torch.equal(again.score.weight, model.score.weight) and "new" not in caplog.text


def test_a_head_with_two_numbers_is_refused(tokenizer, tmp_path):
    model = reward_model(num_labels=2)
    model.resize_token_embeddings(300)
    export.save(model, tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match="2 numbers per sequence"):
        pretrained(tmp_path / "model").load_model(tokenizer, head="reward")


def test_other_tensors_must_be_filled(opened, tokenizer, tmp_path):
    opened()
    config = AutoConfig.from_pretrained(tmp_path / "base")
    config.num_hidden_layers = 3
    config.layer_types = None
    config.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"layers\.2"):
        opened()


def test_an_architecture_without_a_score_head_is_refused(tokenizer):
    with pytest.raises(InputError, match="no granite that scores sequences"):
        scratch("granite").load_model(tokenizer, head="reward")


# --- the pad token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["<|eos|>", "<|im_end|>", "<|bos|>", None])
def test_no_sequence_ends_in_the_pad_token(opened, tokenizer, pad):
    ends = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|im_end|>"])
    model = opened()
    tokenizer.pad_token = pad
    set_pad_token(model, tokenizer, ends)
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("<|pad|>", tokenizer.pad_token_id)


def test_where_no_token_can_pad_transformers_scores_single_sequences_only(opened, tokenizer, caplog):
    model = opened()
    ends = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    with caplog.at_level(logging.INFO):
        set_pad_token(model, tokenizer, ends)
    assert model.config.pad_token_id is None and "one sequence at a time" in caplog.text
    with pytest.raises(ValueError, match="batch sizes > 1"):
        model(**IDS)


# --- adapters and files -----------------------------------------------------------------------------------------------

HEADED = [kind for kind in KINDS if kind != "llama_adapter"]


@pytest.mark.parametrize("kind", [None, *HEADED])
def test_a_saved_reward_model_opens_in_transformers_with_the_same_scores(opened, tokenizer, tmp_path, kind):
    model = opened(kind)
    model = model if kind else disturb(model)
    export.save(model, tokenizer, tmp_path / "model")
    assert export.verify(tmp_path / "model", model, IDS) <= 1e-6
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / ("base" if kind else "model"), num_labels=1)
    if kind:
        theirs.config.pad_token_id = tokenizer.pad_token_id
        theirs = PeftModel.from_pretrained(theirs, tmp_path / "model")
    assert theirs.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    torch.testing.assert_close(export.logits(theirs, IDS), export.logits(model, IDS))
    assert export.logits(theirs, IDS).std() > 1e-3


@pytest.mark.parametrize("kind", HEADED)
def test_head_and_adapter_train_together_and_further(opened, tokenizer, tmp_path, kind):
    export.save(opened(kind), tokenizer, tmp_path / "first")
    model = pretrained(tmp_path / "first").load_model(tokenizer, head="reward")
    trained = [name for name in adapters.trainable(model) if "score" in name]
    assert len(trained) == 1 and len(adapters.trainable(model)) > 1
    before = export.logits(model, IDS)
    export.save(disturb(model), tokenizer, tmp_path / "second")
    assert export.verify(tmp_path / "second", model, IDS) <= 1e-6
    assert (export.logits(model, IDS) - before).abs().max() > 1e-3


@pytest.mark.parametrize("quantization", [NF4, {"load_in_8bit": True}])
def test_a_quantised_base_leaves_the_head_whole(opened, tokenizer, tmp_path, quantization):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    model = opened("lora", quantization=BitsAndBytesConfig(**quantization), **wide)
    assert {p.dtype for name, p in model.named_parameters() if "score" in name} == {torch.float32}
    export.save(model, tokenizer, tmp_path / "model")
    assert export.verify(tmp_path / "model", model, IDS) <= 1e-5


def test_an_adapter_that_would_leave_the_head_is_refused(opened):
    with pytest.raises(InputError, match="neither trains nor saves"):
        opened("llama_adapter")


@pytest.mark.parametrize("damaged", ["score.weight", "lora_B"])
def test_a_damaged_head_or_adapter_is_found(opened, tokenizer, tmp_path, damaged):
    model = opened("lora")
    export.save(model, tokenizer, tmp_path / "model")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if damaged.split(".")[0] in name and p.requires_grad).add_(1e-3)
    with pytest.raises(export.ExportError, match="has other values"):
        export.verify(tmp_path / "model", model, IDS)


@pytest.mark.parametrize("kind", MERGEABLE)
def test_merge_same_scores(opened, tokenizer, tmp_path, kind):
    model = opened(kind)
    export.save(model, tokenizer, tmp_path / "model")
    publish(str(tmp_path / "model"), tmp_path / "merged")
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert alone.config.pad_token_id == tokenizer.pad_token_id
    torch.testing.assert_close(export.logits(alone, IDS), export.logits(model, IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [("language_model", "reward"), ("reward", "language_model")])
def test_an_adapter_of_the_other_head_is_refused(opened, tokenizer, tmp_path, heads):
    trained, asked = heads
    opened()
    base = pretrained(tmp_path / "base").load_model(tokenizer, head=trained)
    export.save(adapters.attach(base, KINDS["lora"]()), tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match="Merge the adapter"):
        pretrained(tmp_path / "model").load_model(tokenizer, head=asked)
