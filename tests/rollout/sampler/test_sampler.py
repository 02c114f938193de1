"""Completions equal Transformers' own where they are greedy, and follow the model's probabilities where drawn."""

import copy
import functools
import time

import pytest
import torch
import transformers
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig, get_peft_model

from alignlab.errors import InputError
from alignlab.models.packed_attention import fitting
from alignlab.models.scoring import token_scores
from alignlab.rollout.sampler import decoder, probe, sampler
from alignlab.rollout.sampler import replay as replaying
from alignlab.rollout.sampler.decoder import PlainDecoder, SharedDecoder
from alignlab.rollout.sampler.probe import decoder_for
from alignlab.rollout.sampler.sampler import PolicySampler, sample
from alignlab.types.batch import MicroBatch
from tests.conftest import REPOSITORY
from tests.methods.prompts import as_rows
from tests.rollout.sampler.test_sampling import reference, settings

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0}
# Windows of 5 positions are narrower than any prompt with its completion.
MODELS = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen3": {},
    "Mistral": {"sliding_window": 5},
    "Gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0},
    "Gemma3Text": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "GptOss": {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "Llama4Text": {"attention_chunk_size": 4, "num_local_experts": 2, "intermediate_size_mlp": 48},
}
PLAIN = {"GptOss", "Llama4Text"}
"""Attention sinks; chunks that only a mask knows."""


@functools.cache
def make(name):
    """A random model whose completions differ from prompt to prompt."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**LLAMA, **MODELS[name])
    attention = fitting("packed", config)
    return _loud(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)).eval()


def _loud(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(model, prompts=PROMPTS, *, num_completions=2, batch_size=64, seed=0, tokenizer=None, **changes):
    flat = sample(
        model,
        prompts,
        num_completions=num_completions,
        settings=settings(**{"max_completion_tokens": 14, "stop_tokens": [3], **changes}),
        tokenizer=tokenizer,
        pad_token_id=0,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
    ).plain()
    return [flat[start : start + num_completions] for start in range(0, len(flat), num_completions)]


def tokens_of(groups):
    return [[completion.tokens for completion in group] for group in groups]


def generate(model, prompts, **options):
    """Transformers' own greedy completions of left-padded prompts."""
    width = max(map(len, prompts))
    output = model.generate(
        input_ids=torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        **{"do_sample": False, "max_new_tokens": 14, "eos_token_id": [3], "pad_token_id": 0, **options},
    )[:, width:].tolist()
    return [row[: row.index(3) + 1] if 3 in row else row for row in output]


def assert_logps_are_those_of_a_forward(model, groups, prompts=PROMPTS, temperature=1.0):
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion.tokens])).logits[0, len(prompt) - 1 : -1]
            logps = (logits.float() / temperature).log_softmax(-1)
            expected = logps.gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=2e-4, rtol=1e-4)


# --- greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_generate(name, penalty):
    """Alone and padded, all at once, in turns that join one another, and one completion after the other."""
    model = make(name)
    assert decoder_for(model) is (PlainDecoder if name in PLAIN else SharedDecoder)
    alone = [generate(model, [prompt], repetition_penalty=penalty)[0] for prompt in PROMPTS]
    if penalty == 1.0:  # with padding, Transformers penalises the pad token too
        assert generate(model, PROMPTS) == alone
    for batch_size in (64, 3, 1):
        found = run(model, temperature=0.0, repetition_penalty=penalty, batch_size=batch_size)
        assert tokens_of(found) == [[tokens] * 2 for tokens in alone]
        assert_logps_are_those_of_a_forward(model, found)


@pytest.mark.parametrize("batch_size", [64, 3])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - PLAIN))
def test_steps_of_fixed_shapes_give_the_same(name, batch_size, monkeypatch):
    """With masked columns beyond the newest, as they are recorded on a GPU; 70 tokens need more columns twice."""
    model, sizes = make(name), {"max_completion_tokens": 70, "batch_size": batch_size}
    expected = run(model, seed=1, **sizes)
    monkeypatch.setattr(decoder, "can_replay", lambda device: True)
    found = run(model, seed=1, **sizes)
    assert tokens_of(found) == tokens_of(expected)
    assert_logps_are_those_of_a_forward(model, found)


@pytest.mark.gpu
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma2", "Qwen3Moe"])
def test_replayed_steps_give_the_same(name, adapted, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make(name)
    if adapted:
        model = get_peft_model(copy.deepcopy(model), ADAPTERS["lora"])
    model, replays, replay = copy.deepcopy(model).cuda().eval(), [], torch.cuda.CUDAGraph.replay
    sizes = {"max_completion_tokens": 70, "batch_size": 3, "num_completions": 4, "stop_tokens": [3, 9, 20, 31]}
    monkeypatch.setattr(decoder, "can_replay", lambda device: False)
    monkeypatch.setattr(replaying, "can_replay", lambda device: False)
    expected = run(model, seed=1, **sizes)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    for _ in range(2):
        assert tokens_of(run(model, seed=1, **sizes)) == tokens_of(expected)
    assert replays or name == "Qwen3Moe", "some ways to route to experts synchronise with the device"


ADAPTERS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "llama_adapter": AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_greedy_equals_the_forward_with_an_adapter(name):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA)
    base = transformers.LlamaForCausalLM._from_config(config, attn_implementation="packed")
    model = get_peft_model(_loud(base), ADAPTERS[name]).eval()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5 if "gate" not in key else 1.0)
    found = run(model, temperature=0.0)
    assert_logps_are_those_of_a_forward(model, found)
    for prompt, group in zip(PROMPTS, found, strict=True):
        for completion in group:
            logits = model(input_ids=torch.tensor([prompt + completion.tokens])).logits[0, len(prompt) - 1 : -1]
            assert completion.tokens == logits.argmax(-1).tolist()
    if name == "lora":
        assert [group[0].tokens for group in found] == [generate(model, [prompt])[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def pocket():
    folder = REPOSITORY / "src/alignlab/assets/pocket"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="packed").eval()
    asked = ["What is 7+5?", "Eva has 83 cards. She gets 24 more. How many cards does Eva have?", "What is 9*8?"]
    rows = [[{"role": "user", "content": text}] for text in asked]
    prompts = [tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=False) for row in rows]
    return model, tokenizer, prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_equals_generate_on_pocket(pocket, dtype):
    model, _, prompts = pocket
    options = {"max_new_tokens": 64, "eos_token_id": [1], "pad_token_id": 2}
    with sampler.converted(model, dtype if dtype != torch.float32 else None):
        found = run(model, prompts, temperature=0.0, max_completion_tokens=64, stop_tokens=[1], num_completions=1)
        alone = [generate(model, [prompt], **options)[0] for prompt in prompts]
        padded = [row[: row.index(1) + 1] for row in generate(model, prompts, **options)]
    assert [group[0].tokens for group in found] == [row[: row.index(1) + 1] for row in alone] == padded
    assert all(group[0].finished for group in found)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_are_converted_while_sampling_and_come_back_as_they_were(pocket, dtype):
    before = [parameter.detach().clone() for parameter in pocket[0].parameters()]
    with sampler.converted(pocket[0], dtype):
        assert {parameter.dtype for parameter in pocket[0].parameters()} == {dtype or torch.float32}
    assert all(map(torch.equal, before, pocket[0].parameters()))


def test_under_autocast_it_is_the_autocast_forward_that_samples(pocket):
    model, _, prompts = pocket
    with torch.autocast("cpu", torch.bfloat16):
        probe._known.clear()
        assert decoder_for(model) is SharedDecoder
        found = run(model, prompts, temperature=0.0, max_completion_tokens=64, stop_tokens=[1], num_completions=1)
    for [completion], prompt in zip(found, prompts, strict=True):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion.tokens])).logits[0, len(prompt) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()


# --- drawn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 1.25}, {"temperature": 2.5}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.05}],
    ids=str,
)
def test_pairs_of_tokens_follow_the_distribution(pocket, changes):
    """20,000 completions of two tokens against their exact probabilities, by chi-square."""
    model, tokenizer, prompts = pocket
    prompt = prompts[0] + tokenizer.encode("<reasoning>", add_special_tokens=False)
    changes = {"temperature": 2.5, **changes}
    found = run(model, [prompt], num_completions=20_000, max_completion_tokens=2, stop_tokens=[], **changes)
    drawn = torch.zeros(384, 384, dtype=torch.float64)
    tokens = torch.tensor(tokens_of(found)[0])
    drawn.index_put_((tokens[:, 0], tokens[:, 1]), torch.ones(20_000, dtype=torch.float64), accumulate=True)
    expected = 20_000 * pair_probabilities(model, prompt, changes)
    assert drawn[expected == 0].sum() == 0, "a token was drawn that is cut off"
    assert chi_square(drawn, expected) > 1e-3


def chi_square(observed, expected):
    """Chance of counts at least this far from the expected ones; cells below 5 make one cell."""
    rare = expected < 5
    cells = [torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (observed, expected)]
    observed, expected = (cell[cells[1] >= 5] for cell in cells)
    assert len(expected) > 5
    distance = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), distance / 2).item()


@torch.no_grad()
def pair_probabilities(model, prompt, changes):
    """Exact probabilities of two tokens after the prompt, through the processors of Transformers. Shape [V, V]."""
    first = model(input_ids=torch.tensor([prompt])).logits[:, -1]
    follow = model(input_ids=torch.tensor([[*prompt, token] for token in range(384)])).logits[:, -1]
    probabilities = [reference(logits.double(), changes, None) for logits in (first, follow)]
    return probabilities[0].T * probabilities[1]


def test_logps_are_those_of_token_scores_at_the_temperature(pocket):
    model, _, prompts = pocket
    cut = {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    for group, prompt in zip(run(model, prompts, stop_tokens=[1], **cut), prompts, strict=True):
        for completion in group:
            length = len(completion.tokens)
            tokens = torch.tensor([prompt + completion.tokens])
            scores = token_scores(model, micro_batch(tokens, len(prompt), length), temperature=1.7)
            torch.testing.assert_close(torch.tensor(completion.logps), scores.logps.detach(), atol=1e-4, rtol=1e-5)


def micro_batch(tokens, start, length):
    whole = torch.arange(tokens.shape[1])
    inputs = {"input_ids": tokens, "position_ids": whole[None], "attention_mask": torch.ones_like(tokens)}
    one = torch.zeros(1, dtype=torch.long)
    return MicroBatch(
        inputs=inputs,
        source_positions=whole[start - 1 : start - 1 + length],
        labels=tokens[0, start:],
        sequence_ids=one.expand(length),
        group_ids=one,
        columns={},
        num_tokens=len(whole),
        last_positions=one,
    )


@pytest.mark.parametrize("name", ["Llama", "GptOss"])
def test_draws_depend_on_the_generator_alone(name):
    model, open_end = make(name), {"temperature": 1.3, "top_p": 0.9}
    found = tokens_of(run(model, num_completions=5, **open_end))
    for batch_size in (1, 4, 7):
        assert tokens_of(run(model, num_completions=5, batch_size=batch_size, **open_end)) == found
    assert tokens_of(run(model, num_completions=5, seed=1, **open_end)) != found
    assert len({tuple(tokens) for group in found for tokens in group}) > 10


# --- ends, work and manners -------------------------------------------------------------------------------------------


def test_stop_tokens_end_and_the_limit_cuts():
    found = [completion for group in run(make("Llama"), num_completions=40) for completion in group]
    assert {completion.finished for completion in found} == {True, False}
    for completion in found:
        assert completion.finished == (completion.tokens[-1] == 3)
        assert 3 not in completion.tokens[:-1]
        assert completion.finished or len(completion.tokens) == 14
        assert len(completion.logps) == len(completion.tokens)


def test_stop_strings_end(pocket):
    model, tokenizer, prompts = pocket
    options = {"max_completion_tokens": 64, "stop_tokens": [1], "stop_strings": ["</reasoning>"]}
    for [completion] in run(model, prompts, num_completions=1, tokenizer=tokenizer, temperature=0.0, **options):
        assert "</reasoning>" in tokenizer.decode(completion.tokens) and completion.finished
        assert "</reasoning>" not in tokenizer.decode(completion.tokens[:-1])


def test_completions_end_with_the_context():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=12, bos_token_id=1)
    model = transformers.GPT2LMHeadModel(config).eval()
    lengths = [len(group[0].tokens) for group in run(model, stop_tokens=[], max_completion_tokens=10)]
    assert lengths == [9, 10, 4, 10]


def spy(monkeypatch):
    """Shapes of all inputs of the model's forward."""
    shapes = []
    forward = transformers.LlamaForCausalLM.forward

    def noted(self, input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", noted)
    return shapes


@pytest.mark.parametrize("batch_size", [32, 6, 1])
def test_a_prompt_is_computed_once_however_many_completions_it_has(monkeypatch, batch_size):
    model = make("Llama")
    decoder_for(model)
    shapes = spy(monkeypatch)
    run(model, [[5, 6, 7], [9, 8], [4, 5, 6, 7, 8]], num_completions=8, batch_size=batch_size)
    assert sum(rows for rows, width in shapes if width > 1) == 3


def test_prompts_go_through_the_model_in_parts(monkeypatch):
    model = make("Llama")
    decoder_for(model)
    shapes = spy(monkeypatch)
    monkeypatch.setattr(decoder, "MAX_PREFILL_TOKENS", 8)
    run(model, [[5, 6, 7, 8], [9, 10], [5, 6, 7], [1] * 9, [4]], num_completions=2)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 4), (1, 3), (1, 9)]


def test_rows_that_have_ended_leave_and_others_take_their_place(monkeypatch):
    model = make("Llama")
    decoder_for(model)
    shapes = spy(monkeypatch)
    prompts = [[5, 6, 7]] * 12
    found = run(model, prompts, num_completions=4, batch_size=16, max_completion_tokens=60)
    fed = sum(rows for rows, width in shapes if width == 1)
    needed = sum(len(completion.tokens) - 1 for group in found for completion in group)
    assert needed <= fed < 1.3 * needed, "stragglers pay for those that ended"
    assert max(rows for rows, width in shapes if width == 1) == 16


def test_the_progress_counts_completions_and_tokens():
    """Twelve at a time of 24, of which one that has ended stays for a while; the last report counts all tokens."""
    reports, started = [], time.monotonic()
    drawn = sample(
        make("Llama"),
        PROMPTS,
        num_completions=24 // len(PROMPTS),
        settings=settings(stop_tokens=range(4), max_completion_tokens=30),
        tokenizer=None,
        pad_token_id=0,
        batch_size=12,
        generator=torch.Generator().manual_seed(0),
        on_progress=reports.append,
    )
    assert len(set(drawn.lengths.tolist())) > 1
    counts = [(one.num_ended, one.num_tokens, one.seconds) for one in reports]
    assert counts == sorted(counts) and {one.num_completions for one in reports} == {len(drawn)}
    assert counts[-1][:2] == (len(drawn), len(drawn.tokens))
    assert counts[0][2] >= 0 and counts[-1][2] <= time.monotonic() - started


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_every_module_keeps_its_mode(training):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, attention_dropout=0.9)
    model = _loud(transformers.LlamaForCausalLM._from_config(config, attn_implementation="packed"))
    model.train(training).model.norm.eval()
    modes = [module.training for module in model.modules()]
    first, second = (run(model, temperature=0.0) for _ in range(2))
    assert tokens_of(first) == tokens_of(second)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "packed"


def test_no_prompts_give_nothing_and_empty_ones_are_refused():
    assert run(make("Llama"), []) == []
    with pytest.raises(InputError, match="no tokens"):
        run(make("Llama"), [[1], []])


def test_an_architecture_that_cannot_go_on_from_a_cache_is_refused():
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"rollout=hf with MambaForCausalLM.*nats.*rollout=vllm"):
        run(transformers.MambaForCausalLM(config).eval())


def test_the_configured_sampler_draws_the_same(pocket):
    model, tokenizer, prompts = pocket
    drawing = {"temperature": 1.3, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}
    draws = PolicySampler(**drawing, max_completion_tokens=20, stop_strings=[], batch_size=5, dtype=None)
    given = {"num_completions": 3, "stop_tokens": [1], "tokenizer": tokenizer}
    found = draws(model, as_rows(prompts), **given, generator=torch.Generator().manual_seed(4))
    wanted = run(model, prompts, num_completions=3, seed=4, **drawing, max_completion_tokens=20, stop_tokens=[1])
    assert found.token_lists() == [completion.tokens for group in wanted for completion in group]
