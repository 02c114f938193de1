"""Flash attention equals attention by buckets: slow kernels of the same contract on the CPU, the real ones on a GPU."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models import flash_attention, packed_attention, scoring
from alignlab.models.packed_attention import IMPLEMENTATIONS, fitting, implementation
from alignlab.types.batch import move
from alignlab.types.layout import Lengths, packed_layout
from alignlab.types.rows import TokenRow

CASES = {
    "documents": ([[0, 9], [3, 4], [0, 1], [5, 30]], None),
    "several completions": ([[4, 3, 5, 2]], None),
    "mixture": ([[0, 7], [6, 1, 8], [2, 3], [20, 17, 1, 4], [0, 5]], None),
    "empty prompts": ([[0, 3, 4], [5, 2, 2], [0, 6]], None),
    "empty completions": ([[3, 0, 2], [4, 0, 0], [5, 0], [2, 3, 0, 1]], None),
    "single tokens": ([[1, 1, 1], [0, 1], [1, 0, 1]], None),
    "window over documents": ([[0, 9], [3, 4], [0, 30]], 5),
    "window of one": ([[0, 9], [3, 4]], 1),
    "window longer than shared paths": ([[0, 30], [4, 3, 5]], 9),
}
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def spans(lengths):
    return list(pairwise(lengths.cumulative.tolist()))


def attended(queries, keys, sides, device):
    """``[Q, K]``: aligned at the last query and key, with so many keys to the left and the right."""
    query, key = torch.arange(queries, device=device)[:, None] + keys - queries, torch.arange(keys, device=device)
    left, right = sides
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    seen = seen if left < 0 else seen & (key >= query - left)
    return seen if right < 0 else seen & (key <= query + right)


def scores(query, key, sides, scale):
    """``[heads, Q, K]``, with the key heads repeated."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    products = torch.einsum("qhd,khd->hqk", query, key) * (scale or query.shape[-1] ** -0.5)
    return products.masked_fill(~attended(len(query), len(key), sides, query.device), -torch.inf)


def slow_kernel(query, key, value, queries, keys, sides, scale):
    """What the kernel computes, segment by segment; not a number where it would leave memory as it was."""
    out = torch.full_like(query, torch.nan)
    lse = query.new_full((query.shape[1], len(query)), torch.nan)
    for (q0, q1), (k0, k1) in zip(spans(queries), spans(keys), strict=True):
        assert q0 < q1 <= q0 + queries.longest
        assert k0 < k1 <= k0 + keys.longest
        products = scores(query[q0:q1], key[k0:k1], sides, scale)
        values = value[k0:k1].repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        out[q0:q1] = torch.einsum("hqk,khd->qhd", products.softmax(-1), values)
        lse[:, q0:q1] = products.logsumexp(-1)
    return out, lse


def slow_kernel_backward(gradient, query, key, value, out, lse, queries, keys, sides, scale):
    """What the backward kernel computes from the output and log-sum-exp that it is given."""
    shared = query.shape[1] // key.shape[1]
    found = [torch.full_like(part, torch.nan) for part in (query, key, value)]
    for (q0, q1), (k0, k1) in zip(spans(queries), spans(keys), strict=True):
        q, k, v, g = query[q0:q1], key[k0:k1], value[k0:k1].repeat_interleave(shared, dim=1), gradient[q0:q1]
        shares = (scores(q, k, sides, scale) - lse[:, q0:q1, None]).exp()
        inner = (g * out[q0:q1]).sum(-1).T[..., None]
        products = shares * (torch.einsum("qhd,khd->hqk", g, v) - inner) * (scale or q.shape[-1] ** -0.5)
        found[0][q0:q1] = torch.einsum("hqk,khd->qhd", products, k.repeat_interleave(shared, dim=1))
        found[1][k0:k1] = torch.einsum("hqk,qhd->khd", products, q).unflatten(1, (-1, shared)).sum(2)
        found[2][k0:k1] = torch.einsum("hqk,qhd->khd", shares, g).unflatten(1, (-1, shared)).sum(2)
    return tuple(found)


@pytest.fixture
def slow_kernels(monkeypatch):
    """Compute by slow kernels on any device, and count the calls."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return slow_kernel(*arguments)

    monkeypatch.setattr(flash_attention, "kernel", counted)
    monkeypatch.setattr(flash_attention, "kernel_backward", slow_kernel_backward)
    return calls


class Layer(nn.Module):
    """What the attention functions of Transformers read from a layer."""

    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def states(groups, dtype=torch.float64, device="cpu", size=SIZE):
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(map(sum, groups)), size) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    made = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [part.to(device, dtype).requires_grad_() for part in made]


def with_gradients(attend, parts):
    """The output and the gradients of a weighted sum of it."""
    out = attend(*parts)
    # Numbers that every dtype represents, so that they are the same for all.
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), parts)]


def by_buckets(layout, window):
    inner = packed_attention.sdpa_attention_forward
    return lambda *parts: packed_attention.packed_attention(Layer(), *parts, layout, inner, window)


def by_flash(layout, window):
    return lambda *parts: flash_attention.attend(*parts, layout.segments, window, None)


@pytest.mark.parametrize(("groups", "window"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_equal_those_by_buckets(slow_kernels, groups, window):
    layout, parts = packed_layout(groups), states(groups)
    expected = with_gradients(by_buckets(layout, window), parts)
    found = with_gradients(by_flash(layout, window), parts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert len(slow_kernels) == (1 if layout.segments.shared is None else 2)


@pytest.mark.parametrize("window", [None, 64])
def test_branches_equal_those_by_buckets(slow_kernels, window):
    groups, branches = [[6, 30], [0, 4], [4, 12, 5, 8]], {0: [[6, 9], [3, 7], [12, 10], [0, 4]], 2: [[4, 5], [2, 7]]}
    layout, parts = packed_layout(groups, branches), states(groups)
    expected = with_gradients(by_buckets(layout, window), parts)
    found = with_gradients(by_flash(layout, window), parts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert layout.segments.shared.prompts.cumulative.diff().tolist() == [3, 12, 4, 2, 4]


def test_segments_of_a_layout():
    segments = packed_layout([[0, 4], [3, 2, 0, 5], [2, 3], [0, 1, 1], [4, 0, 0]]).segments
    assert segments.causal.cumulative.tolist() == [0, 4, 7, 9, 14, 19, 20, 21, 25]
    assert segments.causal.cumulative.dtype == torch.int32
    assert segments.causal.longest == 5
    assert segments.shared.queries.tolist() == [*range(7, 14)]
    assert segments.shared.keys.tolist() == [4, 5, 6]
    assert segments.shared.completions.cumulative.tolist() == [0, 7]
    assert segments.shared.prompts.cumulative.tolist() == [0, 3]
    assert segments.shared.longest_path == 8
    assert packed_layout([[0, 4], [2, 3]]).segments.shared is None
    assert packed_layout([]).segments.causal.longest == 0


def test_a_layout_moves_with_its_segments():
    moved = packed_layout([[3, 2, 4]]).to("meta").segments
    tensors = (moved.causal.cumulative, moved.shared.queries, moved.shared.keys, moved.shared.prompts.cumulative)
    assert all(part.is_meta for part in (*tensors, moved.shared.completions.cumulative))


def test_the_kernels_of_pytorch_take_these_arguments():
    """Their functions for the meta device check the arguments and give the shapes."""
    lengths = Lengths(torch.zeros(3, dtype=torch.int32, device="meta"), 6)
    query, key = (torch.empty(10, heads, 16, dtype=torch.bfloat16, device="meta") for heads in (4, 2))
    for sides in (flash_attention.CAUSAL, flash_attention.WHOLE, (3, 0)):
        out, lse = flash_attention.kernel(query, key, key, lengths, lengths, sides, None)
        assert (out.shape, lse.shape, lse.dtype) == (query.shape, (4, 10), torch.float32)
        given = (out, query, key, key, out, lse, lengths, lengths, sides, 0.5)
        assert [part.shape for part in flash_attention.kernel_backward(*given)] == [query.shape, key.shape, key.shape]


@pytest.fixture
def rows():
    draw, made = torch.Generator().manual_seed(0), []
    for groups in ([[0, 7], [6, 1, 8]], [[2, 3], [20, 17, 1, 4]], [[0, 5], [3, 0, 2]]):
        tokens = torch.randint(1, 101, (sum(map(sum, groups)),), generator=draw).tolist()
        made.append(TokenRow(tokens=tokens, supervised=[True] * len(tokens), groups=groups, origin="", columns={}))
    return made


def logps_and_gradients(model, batch):
    model.zero_grad()
    found = scoring.token_scores(model, batch).logps
    (found * torch.linspace(-1, 1, len(found), device=found.device)).sum().backward()
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return found.detach().float().cpu(), torch.cat(gradients)


def always(monkeypatch):
    """Use flash attention in float32 on the CPU too, where the window allows it."""
    monkeypatch.setattr(flash_attention, "DTYPES", (torch.float32,))
    monkeypatch.setattr(flash_attention, "_missing_on", lambda device: None)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss", "gpt_neox"])
def test_whole_models_agree(tiny_model, rows, slow_kernels, monkeypatch, model_type):
    batch = collate(rows, packing=True)
    expected, expected_gradient = logps_and_gradients(tiny_model(model_type, implementation("sdpa")), batch)
    assert not slow_kernels
    always(monkeypatch)
    found, gradient = logps_and_gradients(tiny_model(model_type, implementation("auto")), batch)
    # The shared paths are longer than mistral's window; gemma2 caps its scores, gpt_oss has sinks.
    assert len(slow_kernels) == (0 if model_type in ("mistral", "gemma2", "gpt_oss") else 4)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


def test_a_window_over_documents_is_recorded_for_the_check_of_a_model(tiny_model, slow_kernels, monkeypatch):
    always(monkeypatch)
    row = TokenRow(tokens=[*range(1, 20)], supervised=[True] * 19, groups=[[0, 10], [4, 5]], origin="", columns={})
    batch = collate([row], packing=True)
    found, _ = logps_and_gradients(tiny_model("mistral"), batch)
    assert {call[5] for call in slow_kernels} == {(5, 0)}
    assert batch.inputs["layout"].windows == {6}
    expected, _ = logps_and_gradients(tiny_model("mistral", implementation("sdpa")), batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_what_the_kernels_do_not_take_is_computed_by_buckets(monkeypatch):
    segments = packed_layout([[4, 3, 5]]).segments
    always(monkeypatch)
    fits = states([[4, 3, 5]], torch.float32)
    assert flash_attention.computes(*fits, segments, None)
    assert flash_attention.computes(*fits, segments, 9)
    assert not flash_attention.computes(*fits, segments, 8)
    assert not flash_attention.computes(*states([[4, 3, 5]]), segments, None)
    assert not flash_attention.computes(*fits[:2], fits[2].double(), segments, None)
    assert not flash_attention.computes(*fits[:2], fits[2][..., :4], segments, None)
    assert not flash_attention.computes(*(part[..., :4] for part in fits), segments, None)
    assert not flash_attention.computes(*states([[4, 3, 5]], torch.float32, size=264), segments, None)


# --- asked for by name ------------------------------------------------------------------------------------------------


def test_flash_is_refused_without_a_device_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"no CUDA device.*attn_implementation=auto"):
        implementation("flash")


@pytest.mark.parametrize(
    ("model_type", "changes", "why"),
    [
        ("falcon", {}, "code of its own"),
        ("gemma2", {}, "caps its attention scores"),
        ("llama", {"head_dim": 12}, "heads of size 12"),
    ],
)
def test_flash_is_refused_for_an_architecture_that_never_uses_it(model_type, changes, why):
    config = AutoConfig.for_model(model_type, **changes)
    with pytest.raises(InputError, match=rf"{why}.*attn_implementation=auto"):
        fitting(IMPLEMENTATIONS["flash"], config)


def test_flash_is_accepted_where_it_can_work():
    assert fitting(IMPLEMENTATIONS["flash"], AutoConfig.for_model("qwen2")) == IMPLEMENTATIONS["flash"]


@pytest.mark.parametrize("name", IMPLEMENTATIONS.values())
def test_transformers_takes_no_registered_name_for_one_of_its_own(tiny_model, name):
    # It takes "flash" in a name for a package of kernels, and refuses "sdpa" in one for this architecture.
    assert "flash" not in name
    assert tiny_model("gpt_oss", name).config._attn_implementation == name


# --- on a GPU ---------------------------------------------------------------------------------------------------------

GPU_CASES = CASES | {
    "long": ([[0, 700], [300, 200, 150, 129], [128, 128, 64], [257, 1, 400], [0, 33]], None),
    "long window": ([[0, 700], [300, 200]], 129),
}


def needs_cuda():
    if why := flash_attention.missing():
        pytest.skip(why)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [8, 64, 128, 256])
@pytest.mark.parametrize(("groups", "window"), GPU_CASES.values(), ids=GPU_CASES)
def test_real_kernels_are_as_exact_as_buckets(groups, window, size, dtype):
    needs_cuda()
    layout = packed_layout(groups).to("cuda")
    parts = states(groups, dtype, "cuda", size)
    assert flash_attention.computes(*parts, layout.segments, window)
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = with_gradients(by_buckets(layout, window), exact)
    buckets = with_gradients(by_buckets(layout, window), parts)
    flash = with_gradients(by_flash(layout, window), parts)
    for name, a, b, reference in zip(("out", "query", "key", "value"), flash, buckets, expected, strict=True):
        error, allowed = ((part.double() - reference).norm().item() for part in (a, b))
        floor = torch.finfo(dtype).eps * reference.norm().item()
        assert error <= 2 * allowed + floor, f"{name}: {error:.3g} by flash, {allowed:.3g} by buckets"


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "bf16-mixed"])
def test_whole_models_agree_on_a_gpu(tiny_model, rows, monkeypatch, autocast):
    needs_cuda()
    calls, real = [], flash_attention.kernel
    monkeypatch.setattr(flash_attention, "kernel", lambda *args: calls.append(args) or real(*args))
    batch = move(collate(rows, packing=True), "cuda")
    stored = torch.float32 if autocast else torch.bfloat16

    def scored(name, dtype):
        model = tiny_model("qwen2", IMPLEMENTATIONS[name], hidden_size=64).to("cuda", stored).to(dtype)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast and name != "eager"):
            return logps_and_gradients(model, batch)

    expected, buckets, flash = scored("eager", torch.float64), scored("sdpa", stored), scored("auto", stored)
    assert len(calls) == 4
    for a, b, reference in zip(flash, buckets, expected, strict=True):
        error, allowed = ((part - reference).norm().item() for part in (a, b))
        assert error <= 2 * allowed + 1e-3 * reference.norm().item(), f"{error:.3g} by flash, {allowed:.3g} by buckets"
