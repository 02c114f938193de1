"""Memory of one process, term by term, at the moments of a run at which it may be highest.

Sources: what ZeRO divides is from its paper (arXiv 1910.02054, section 5), with the buffers that DeepSpeed and FSDP2
add; activations are counted on the model itself (``live_bytes``) where Korthikanti et al. 2022 (arXiv 2205.05198,
section 4) derive them for one architecture: flash attention keeps no scores, and checkpointing keeps the input of each
block.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from alignlab.estimate.batches import Batches
from alignlab.estimate.cards import GIB, Hardware
from alignlab.estimate.live_bytes import MicroBatchBytes
from alignlab.estimate.strategy import Division
from alignlab.estimate.weights import Weights
from alignlab.models.blockwise import ROOM
from alignlab.rollout.sampler.cache import FIRST_COLUMNS

MIB = 2**20
FLOAT32 = 4

BACKWARD, UPDATE, SAMPLING, SAVING = MOMENTS = ("backward", "update", "sampling", "saving")
"""Moments of a run: a forward and backward pass; the optimizer's step; sampling; writing and comparing ``model/``."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the memory and the work of a run are computed from.

    Args:
        policy: Its weights.
        reference: Weights of a reference that is a model of its own; ``None`` if there is none.
        adapter_copies: Copies of the trained weights: of an adapter that is also the reference.
        critic: Weights of a critic that is a model of its own; ``None`` if there is none.
        batches: Sizes of the steps.
        micro_batch: Memory of the largest micro-batch.
        division: What the strategy divides.
        num_ranks: Number of processes.
        hardware: Cards, or main memory.
        state_numbers: Numbers of the optimizer's state per trained weight.
        state_itemsize: Bytes of one of these; ``None`` for those of the weight.
        fuses: Whether the optimizer's step needs no copies.
        has_masters: Whether an engine computes with 16-bit weights, and updates others in float32.
        gathered_share: Bytes of a gathered weight, and of its gradient before the reduction, over those of a shard's.
        cache_itemsize: Bytes of a number in the key-value cache.
        converted_itemsize: Bytes of a weight of the copy that is sampled with; 0 if there is no copy.
        server_share: Share of a card's memory that a vLLM server takes on it.
        recomputes: Whether activations are recomputed.
        offloads_activations: Whether activations wait in host memory, which is not estimated.
        scores_reference: Whether each step scores its rows with a reference.
        scores_before: Times that a rollout is scored before it is trained on.
        is_narrow: Whether products are computed in 16 bits.
        saves_whole: Whether ``model/`` holds all weights, not an adapter.
    """

    policy: Weights
    reference: Weights | None
    adapter_copies: int
    critic: Weights | None
    batches: Batches
    micro_batch: MicroBatchBytes
    division: Division
    num_ranks: int
    hardware: Hardware
    state_numbers: float
    state_itemsize: int | None
    fuses: bool
    has_masters: bool
    gathered_share: float
    cache_itemsize: int
    converted_itemsize: int
    server_share: float
    recomputes: bool
    offloads_activations: bool
    scores_reference: bool
    scores_before: int
    is_narrow: bool
    saves_whole: bool

    def share(self, num_bytes: float, stage: int) -> int:
        """Bytes of this rank, of what is divided from a stage of ZeRO on."""
        return int(num_bytes // (self.num_ranks if self.division.stage >= stage else 1))

    def keeps(self, term: "Term") -> bool:
        """Whether a term is where the training is, and not in the host memory of a card."""
        return not (self.on_card and term.offloaded and getattr(self.division, f"offloads_{term.offloaded}"))

    @property
    def on_card(self) -> bool:
        """Whether tensors are on a card, and what is offloaded is not with them."""
        return self.hardware.card is not None


# --- what is there all the time ---------------------------------------------------------------------------------------


def weights(run: Run) -> int:
    """Weights of the policy: W, or W / n in stage 3."""
    return run.share(run.policy.num_bytes, 3)


def master_weights(run: Run) -> int:
    """Float32 weights that DeepSpeed updates: 4 T / n. With ZeRO-3 in float32 they are the weights themselves."""
    return _masters(run, run.policy) + (_masters(run, run.critic) if run.critic else 0)


def _masters(run: Run, model: Weights) -> int:
    aliased = run.division.stage == 3 and not run.has_masters
    return 0 if run.division.engine != "zero" or aliased else run.share(FLOAT32 * model.trained, 1)


def optimizer_state(run: Run) -> int:
    """Averages that the optimizer keeps: 2 numbers per trained weight for AdamW, divided from stage 1 on."""
    return _state(run, run.policy)


def _state(run: Run, model: Weights) -> int:
    own = FLOAT32 * model.trained if run.has_masters or run.division.engine == "zero" else model.trained_bytes
    numbers = run.state_numbers * model.trained
    return run.share(run.state_numbers * own if run.state_itemsize is None else run.state_itemsize * numbers, 1)


def reference(run: Run) -> int:
    """A frozen copy of the policy or other weights, divided as the policy is; with an adapter, nothing or its copy."""
    copy = run.share(run.reference.num_bytes, 3) if run.reference else 0
    return copy + run.share(run.adapter_copies * run.policy.trained_bytes, 3)


def critic(run: Run) -> int:
    """A critic of its own: weights and optimizer state; its gradients and activations are with those of the policy."""
    return run.share(run.critic.num_bytes, 3) + _state(run, run.critic) if run.critic else 0


def server(run: Run) -> int:
    """A vLLM server on the same card: ``rollout.gpu_memory_fraction`` of it."""
    return int(run.server_share * run.hardware.card.num_bytes) if run.on_card else 0


# --- forward and backward ---------------------------------------------------------------------------------------------


def gradients_of_backward(run: Run) -> int:
    """Gradients while the activations of a micro-batch are there: none before the only one, all before the last.

    FSDP2 adds up full gradients until the last micro-batch reduces them, as ZeRO-1 and -2 do; ZeRO-3 reduces each.
    """
    if run.batches.per_step == 1:
        return 0
    return int(run.gathered_share * _gradients(run, 3 if run.division.engine == "zero" else 4))


def gradients_of_update(run: Run) -> int:
    """All gradients of this rank, with the copy that ZeRO-3 makes of ``sub_group_size`` of them."""
    copied = min(run.policy.trained // run.num_ranks, run.division.sub_group) * FLOAT32
    return _gradients(run, 3) + (copied if run.division.engine == "zero" and run.division.stage == 3 else 0)


def _gradients(run: Run, stage: int) -> int:
    return run.share(run.policy.trained_bytes + (run.critic.trained_bytes if run.critic else 0), stage)


def buffers(run: Run) -> int:
    """Buffers of gradients to send.

    DDP copies all gradients to buckets; ZeRO fills a bucket of ``reduce_bucket_size``; FSDP2 has the full gradients of
    two blocks: of the one that is computed, and of the one that is sent.
    """
    trained = run.policy.trained_bytes + (run.critic.trained_bytes if run.critic else 0)
    itemsize = run.policy.trained_bytes / max(1, run.policy.trained)
    blocks = trained * run.policy.block_bytes / max(1, run.policy.num_bytes)
    by_engine = {
        "ddp": trained,
        "zero": min(trained, run.division.bucket * itemsize),
        "fsdp": 2 * run.gathered_share * blocks,
        "single": 0,
    }
    return int(by_engine[run.division.engine])


def gathered(run: Run) -> int:
    """Weights that are gathered: by FSDP2 two blocks and what is outside them, by ZeRO-3 up to its limit."""
    if run.division.engine == "fsdp":
        blocks = run.policy.root_bytes + 2 * run.policy.block_bytes
        return int(run.gathered_share * min(run.policy.num_bytes, blocks))
    if run.division.stage == 3:
        return int(min(1.0, run.division.live / run.policy.numbers) * run.policy.num_bytes)
    return 0


def activations(run: Run) -> int:
    """What the forward of the decoder keeps for the backward, of the largest micro-batch; see ``live_bytes``."""
    return run.micro_batch.activations


def at_work(run: Run) -> int:
    """The largest chunk of logits with its gradient, or what a block holds in its backward, whichever is more."""
    dequantised = run.policy.largest_quantised * (2 if run.is_narrow else FLOAT32)
    return run.micro_batch.peak - run.micro_batch.activations + dequantised


def optimizer_at_work(run: Run) -> int:
    """Two copies of what an optimizer updates at a time: a tensor, or the flat shard of ZeRO; none if it is fused."""
    if run.fuses:
        return 0
    shard = run.share(run.policy.trained, 1)
    flat = {1: shard, 2: shard, 3: min(shard, run.division.sub_group)}
    own = run.policy.largest_trained // (run.num_ranks if run.division.engine == "fsdp" else 1)
    return 2 * FLOAT32 * (flat[run.division.stage] if run.division.engine == "zero" else own)


# --- sampling ---------------------------------------------------------------------------------------------------------


def whole_policy(run: Run) -> int:
    """All weights, gathered to sample without other ranks, and a copy in ``rollout.dtype``."""
    if run.batches.sampling is None or not run.batches.sampling.rows:
        return 0
    whole = run.policy.num_bytes if run.division.divides_weights else 0
    return whole + run.converted_itemsize * run.policy.numbers


def cache(run: Run) -> int:
    """Keys and values of the completions that are sampled at once, and of their prompts once each.

    2 × blocks × key-value heads × head size numbers per token; columns double when they are full.
    """
    sampling = run.batches.sampling
    if sampling is None or not sampling.rows:
        return 0
    columns = FIRST_COLUMNS
    while columns < sampling.completion_tokens:
        columns *= 2
    tokens = sampling.rows * columns + sampling.prompts * sampling.prompt_tokens
    grown = sampling.rows * columns / run.policy.num_blocks  # a layer is copied when its columns double
    return int((tokens + grown) * run.policy.cached_numbers * run.cache_itemsize)


def sampled_logits(run: Run) -> int:
    """Logits of a token of every completion: float32 log-probs and probabilities, and float64 sums of these."""
    sampling = run.batches.sampling
    return 0 if sampling is None else sampling.rows * run.policy.vocabulary_size * (4 * FLOAT32 + 8)


# --- saving -----------------------------------------------------------------------------------------------------------


def copies_to_save(run: Run) -> int:
    """The model opened again for the comparison; on a CPU also the weights gathered on the first rank.

    Where a card has no room for the model, its blocks come there one by one; see ``models.blockwise``.
    """
    policy = run.policy
    if not run.on_card:
        return policy.num_bytes * (2 if run.division.divides_weights and run.saves_whole else 1)
    others = (term for term in TERMS if SAVING in term.moments and term.size is not copies_to_save and run.keeps(term))
    room = run.hardware.card.num_bytes - sum(term.size(run) for term in others)
    return policy.num_bytes if policy.num_bytes <= ROOM * room else policy.root_bytes + policy.block_bytes


class Term(NamedTuple):
    """A term of the memory.

    Args:
        name: As shown.
        size: Run → bytes.
        moments: Moments at which it is there.
        offloaded: What moves it to host memory: ``weights`` or ``optimizer``; ``None`` for nothing.
    """

    name: str
    size: Callable[[Run], int]
    moments: Collection[str]
    offloaded: str | None = None


TERMS = (
    Term("weights", weights, MOMENTS, "weights"),
    Term("master weights", master_weights, MOMENTS, "optimizer"),
    Term("optimizer state", optimizer_state, MOMENTS, "optimizer"),
    Term("reference", reference, MOMENTS),
    Term("critic", critic, MOMENTS),
    Term("vLLM server", server, MOMENTS),
    Term("gradients", gradients_of_backward, (BACKWARD,)),
    Term("gradients", gradients_of_update, (UPDATE,), "optimizer"),
    Term("buffers to send", buffers, (BACKWARD, UPDATE)),
    Term("gathered weights", gathered, (BACKWARD,)),
    Term("gathered weights", whole_policy, (SAMPLING,)),
    Term("activations", activations, (BACKWARD,)),
    Term("logits or block at work", at_work, (BACKWARD,)),
    Term("optimizer at work", optimizer_at_work, (UPDATE,)),
    Term("key-value cache", cache, (SAMPLING,)),
    Term("logits of samples", sampled_logits, (SAMPLING,)),
    Term("copies to save", copies_to_save, (SAVING,)),
)

CONTEXT = 3 * GIB
"""On a card: CUDA's context, workspaces of its libraries, and what PyTorch's allocator holds unused. Chosen by four
runs on an H200, of 12 to 71 GiB: 2.1 to 5.1 GiB were missing, whatever their size."""

LIBRARIES, DEEPSPEED = 585 * MIB, 70 * MIB
"""Measured on a CPU, with PyTorch 2.13: resident set of a process that trains, without its model, and what DeepSpeed
adds."""


class Memory(NamedTuple):
    """Memory of a process.

    Args:
        terms: Bytes by term and moment.
        host: Bytes in host memory of what is offloaded from a card.
    """

    terms: dict[str, dict[str, int]]
    host: int

    def total(self, moment: str) -> int:
        """Bytes at a moment."""
        return sum(sizes.get(moment, 0) for sizes in self.terms.values())

    @property
    def peak(self) -> int:
        """Bytes at the moment of most."""
        return max(map(self.total, MOMENTS))

    @property
    def peak_moment(self) -> str:
        """The moment of most."""
        return max(MOMENTS, key=self.total)

    @property
    def largest(self) -> list[tuple[str, int]]:
        """Terms at the moment of most, the largest first."""
        found = [(name, sizes.get(self.peak_moment, 0)) for name, sizes in self.terms.items()]
        return sorted((one for one in found if one[1]), key=lambda one: -one[1])


def memory(run: Run) -> Memory:
    """Memory of the process of a run that has most."""
    terms: dict[str, dict[str, int]] = {}
    host = 0
    for term in TERMS:
        size = term.size(run)
        if not run.keeps(term):
            host += size
            continue
        terms.setdefault(term.name, {}).update(dict.fromkeys(term.moments, size))
    if run.batches.sampling is None:
        terms = {
            name: {moment: n for moment, n in sizes.items() if moment != SAMPLING} for name, sizes in terms.items()
        }
    fixed = CONTEXT if run.on_card else LIBRARIES + (DEEPSPEED if run.division.engine == "zero" else 0)
    shown = [moment for moment in MOMENTS if moment != SAMPLING or run.batches.sampling is not None]
    terms = {name: sizes for name, sizes in terms.items() if any(sizes.values())}
    return Memory({**terms, "libraries": dict.fromkeys(shown, fixed)}, host)
