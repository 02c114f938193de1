"""Seconds for a rollout of the embedded model: our sampler against Transformers' ``generate``, alternately.

    python benchmarks/rollout_sampler.py --threads 1 --prompts 48

Both sample 16 completions of at most 64 tokens per prompt, at temperature 1 over the whole vocabulary, for the same
prompts of level 3. Their shares of right answers should be about equal.
"""

import argparse
import statistics
import time

import torch

from alignlab.data.sources.arithmetic import Arithmetic
from alignlab.models.load import Pretrained
from alignlab.rewards.exact_answer import exact_answer
from alignlab.rollout.sampler.sampler import sample
from alignlab.rollout.sampler.sampling import SamplingSettings

NUM_COMPLETIONS, MAX_TOKENS = 16, 64
OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_strings": ()}


def load():
    """Load the embedded model and its tokenizer."""
    options = {"dtype": "float32", "attn_implementation": "auto", "gradient_checkpointing": False}
    source = Pretrained(path="pocket", **options, trust_remote_code=False, revision=None)
    tokenizer = source.load_tokenizer()
    return source.load_model(tokenizer).eval(), tokenizer


def problems(tokenizer, num_prompts):
    """Prompts as token ids, and their answers."""
    source = Arithmetic(
        level=3, kind="prompt", num_train=num_prompts, num_validation=1, num_rejected=1, mistakes=0, seed=0
    )
    rows = list(source.rows("train"))
    options = {"add_generation_prompt": True, "return_dict": False}
    prompts = [tokenizer.apply_chat_template(list(row.prompt), **options) for row in rows]
    return prompts, [str(row.columns["answer"]) for row in rows]


def ours(model, tokenizer, prompts, batch_size, seed):
    """Sample completions per prompt with our sampler, as token ids."""
    limits = {"max_completion_tokens": MAX_TOKENS, "stop_tokens": [tokenizer.eos_token_id]}
    drawn = sample(
        model,
        prompts,
        num_completions=NUM_COMPLETIONS,
        settings=SamplingSettings(temperature=1.0, **limits, **OPEN),
        tokenizer=None,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    tokens = drawn.token_lists()
    return [tokens[start : start + NUM_COMPLETIONS] for start in range(0, len(tokens), NUM_COMPLETIONS)]


def theirs(model, tokenizer, prompts, batch_size, seed):
    """Sample the same with ``generate``, with as many completions at a time."""
    torch.manual_seed(seed)
    groups, at_once = [], max(1, batch_size // NUM_COMPLETIONS)
    for start in range(0, len(prompts), at_once):
        inputs = tokenizer.pad(
            {"input_ids": prompts[start : start + at_once]}, padding_side="left", return_tensors="pt"
        )
        drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        ends = {"max_new_tokens": MAX_TOKENS, "eos_token_id": [tokenizer.eos_token_id]}
        ends["pad_token_id"] = tokenizer.pad_token_id
        output = model.generate(**inputs, num_return_sequences=NUM_COMPLETIONS, **drawing, **ends)
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        groups += [rows[i : i + NUM_COMPLETIONS] for i in range(0, len(rows), NUM_COMPLETIONS)]
    return groups


def main():
    """Print one line per repetition and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=1024, help="completions at once")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load()
    prompts, answers = problems(tokenizer, options.prompts)
    ways, seconds = {"ours": ours, "generate": theirs}, {"ours": [], "generate": []}
    for way in ways.values():
        way(model, tokenizer, prompts[:2], options.batch_size, seed=0)
    for repeat in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            groups = way(model, tokenizer, prompts, options.batch_size, seed=repeat)
            seconds[name].append(time.perf_counter() - start)
            texts = [tokenizer.batch_decode(group, skip_special_tokens=True) for group in groups]
            right = [exact_answer(text, answer) for group, answer in zip(texts, answers, strict=True) for text in group]
            print(f"{name:9} {seconds[name][-1]:6.2f} s   right {sum(right) / len(right):.1%}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["generate"] / medians["ours"]
    print(f"{options.prompts} prompts, {options.threads} threads: {medians['ours']:.2f} s, {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
