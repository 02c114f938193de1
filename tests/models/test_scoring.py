"""Flat, padded and plain computation give the same log-probabilities and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models import scoring
from alignlab.models.neftune import add_embedding_noise, document_lengths
from alignlab.models.packed_attention import fitting, implementation
from alignlab.types.layout import find_paths
from alignlab.types.rows import TokenRow
from tests.models.conftest import ARCHITECTURES


def gradients(model, batch, **options):
    model.zero_grad()
    scores = scoring.token_scores(model, batch, **options)
    weights = torch.linspace(-1, 1, len(scores.logps))
    (scores.logps * weights).sum().backward()
    return scores.logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_packed_equals_unpacked(tiny_model, rows, model_type):
    model = tiny_model(model_type)
    flat, flat_gradient = gradients(model, collate(rows, packing=True))
    padded, padded_gradient = gradients(model, collate(rows, packing=False))
    torch.testing.assert_close(flat, padded, atol=2e-5, rtol=1e-5)
    assert (flat_gradient - padded_gradient).norm() < 1e-5 * padded_gradient.norm()


def branched_rows():
    """Rows whose completions have branches, and their paths as rows of their own."""
    draw, shapes = torch.Generator().manual_seed(5), []
    shapes.append(([[6, 30]], {0: [[6, 9], [3, 7], [12, 10], [0, 4]]}))
    shapes.append(([[4, 12, 5, 8]], {0: [[4, 5], [4, 7]], 2: [[4, 3], [2, 5]]}))
    shapes.append(([[3, 5]], {}))
    rows, alone = [], []
    for groups, branches in shapes:
        size = sum(map(sum, groups))
        tokens = torch.randint(1, 101, (size,), generator=draw).tolist()
        supervised = (torch.rand(size, generator=draw) > 0.3).tolist()
        rows.append(TokenRow(tokens, supervised, groups, "", branches=branches))
        for path in find_paths(groups, branches):
            before = [token for start, end in path.context for token in tokens[start:end]]
            own = slice(path.start, path.start + path.length)
            lengths = [[len(before), path.length]]
            alone.append(TokenRow(before + tokens[own], [False] * len(before) + supervised[own], lengths, ""))
    return rows, alone


@pytest.mark.parametrize("packing", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_branches_equal_sequences_of_their_own(tiny_model, model_type, packing):
    model, (rows, alone) = tiny_model(model_type), branched_rows()
    found, gradient = gradients(model, collate(rows, packing=packing))
    batches = [collate([row], packing=False) for row in alone]
    model.zero_grad()
    logps = torch.cat([scoring.token_scores(model, batch).logps for batch in batches])
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, logps.detach(), atol=2e-5, rtol=1e-5)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(tiny_model, rows, model_type):
    model, batch = tiny_model(model_type), collate(rows, packing=True)
    _, expected = gradients(model, batch)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, found = gradients(model, batch)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_implementations_agree(tiny_model, rows, name):
    batch = collate(rows, packing=True)
    expected, _ = gradients(tiny_model("llama"), batch)
    found, _ = gradients(tiny_model("llama", implementation(name)), batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_unknown_attention_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'sdpa'"):
        implementation("sdap")


@pytest.mark.parametrize("rows_at_once", [1, 7, 60])
def test_chunked_logprob_equals_full(tiny_model, rows, rows_at_once):
    model, batch = tiny_model("gemma2"), collate(rows, packing=True)
    full, full_gradient = gradients(model, batch)
    chunked, chunked_gradient = gradients(model, batch, max_logits=rows_at_once * 101)
    torch.testing.assert_close(chunked, full, atol=1e-5, rtol=1e-5)
    assert (chunked_gradient - full_gradient).norm() < 1e-5 * full_gradient.norm()


def test_full_logits_never_exist(tiny_model, rows):
    model, batch, sizes = tiny_model(), collate(rows, packing=True), []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    scoring.token_scores(model, batch, max_logits=10 * 101)
    assert max(sizes) <= 10 * 101
    assert sum(sizes) == batch.labels.numel() * 101


def test_hits_are_the_most_likely_tokens(tiny_model, rows):
    model, batch = tiny_model(), collate(rows, packing=False)
    logits = model(**batch.inputs).logits.flatten(0, 1)[batch.source_positions]
    assert torch.equal(scoring.token_scores(model, batch).argmax_correct, logits.argmax(-1) == batch.labels)


@pytest.mark.parametrize("packing", [True, False])
def test_verify_accepts_what_is_right(tiny_model, packing):
    assert scoring.verify(tiny_model(), packing) < 1e-5


def test_verify_refuses_a_model_that_mixes_documents(tiny_model):
    # Without the packed attention the flat sequence is one document to the model.
    with pytest.raises(InputError, match=r"data\.packing=false"):
        scoring.verify(tiny_model(implementation="sdpa"), packing=True)


def test_verify_refuses_unknown_scaling_of_logits(tiny_model):
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    model.forward = lambda *args, forward=model.forward, **kwargs: _doubled(forward(*args, **kwargs))
    with pytest.raises(InputError, match="scaled"):
        scoring.verify(model, packing=False)


def _doubled(output):
    output.logits = output.logits * 2
    return output


def test_noise_scales_with_the_document_not_with_the_pack():
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert document_lengths({"position_ids": positions}).tolist() == [[3, 3, 3, 2, 2]]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert document_lengths({"attention_mask": mask, "position_ids": positions}).tolist() == [[2, 2, 2], [3, 3, 3]]


def test_noise_is_added_in_training_only_and_within_its_bound(tiny_model):
    model, seen = tiny_model(), []
    add_embedding_noise(model, alpha=5.0)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    row = TokenRow(tokens=[1, 2, 3, 4], supervised=[True] * 4, groups=[[0, 4]], origin="", columns={})
    inputs = collate([row], packing=True).inputs
    clean = model.get_input_embeddings().weight[inputs["input_ids"]]
    for mode in (False, True):
        model.train(mode)
        scoring.last_hidden_state(model, inputs)
    torch.testing.assert_close(seen[0], clean)
    noise = (seen[1] - clean).abs()
    bound = 5.0 / (4 * 32) ** 0.5
    assert 0.5 * bound < noise.max() <= bound


def test_an_architecture_with_attention_of_its_own_trains_padded_and_is_refused_flat():
    config = AutoConfig.for_model("falcon", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=101)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=fitting("packed", config))
    assert scoring.verify(model.eval(), packing=False) < 1e-4
    with pytest.raises(InputError, match=r"data\.packing=false"):
        scoring.verify(model, packing=True)


def test_a_window_that_only_a_mask_applies_is_refused_flat():
    config = AutoConfig.for_model(
        "phimoe", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, vocab_size=101, sliding_window=20,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=fitting("packed", config))
    with pytest.raises(InputError, match="by a mask alone"):
        scoring.verify(model.eval(), packing=True)
