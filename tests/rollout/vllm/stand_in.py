"""A server that speaks as vLLM does and computes with Transformers, for training runs without vLLM."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.rollout.vllm.fake import Fake
from tests.rollout.vllm.policy import POCKET, token_logps


class StandIn(Fake):
    """Computes with the weights it was sent last, at first with a folder's; may have a temperature of its own."""

    context = 256

    def __init__(self, folder: Path = POCKET):
        self.folder, self.temperature = folder, None
        super().__init__(self.load(folder))

    def load(self, folder: Path):
        model = AutoModelForCausalLM.from_pretrained(
            self.folder if (folder / "adapter_config.json").exists() else folder
        )
        return (PeftModel.from_pretrained(model, folder) if (folder / "adapter_config.json").exists() else model).eval()

    def complete(self, body):
        model, prompt = self.adapters.get(body["model"], self.table), body["prompt"]
        if "prompt_logprobs" in body:
            logps = token_logps(model, prompt[:1], prompt[1:]).tolist()
            places = [{str(token): {"logprob": logp}} for token, logp in zip(prompt[1:], logps, strict=True)]
            return {"choices": [{"prompt_logprobs": [None, *places]}]}
        return {"choices": draw(model, body, self.temperature or body["temperature"])}


@torch.no_grad()
def draw(model, body, temperature: float) -> list[dict]:
    """All completions of a prompt side by side, each by its own generator, to the longest that is allowed."""
    sources = [torch.Generator().manual_seed(body["seed"] + index) for index in range(body["n"])]
    rows, scores = torch.tensor([body["prompt"]] * body["n"]), []
    for _ in range(body["max_tokens"]):
        logps = (model(input_ids=rows).logits[:, -1] / temperature).log_softmax(-1)
        tokens = torch.cat([torch.multinomial(of.exp(), 1, generator=s) for of, s in zip(logps, sources, strict=True)])
        scores.append(logps.gather(1, tokens[:, None]))
        rows = torch.cat([rows, tokens[:, None]], 1)
    written = rows[:, len(body["prompt"]) :].tolist()
    return [
        cut(body, index, *pair) for index, pair in enumerate(zip(written, torch.cat(scores, 1).tolist(), strict=True))
    ]


def cut(body, index: int, tokens: list[int], logps: list[float]) -> dict:
    """A completion up to its first stop token."""
    end = next((place + 1 for place, token in enumerate(tokens) if token in body["stop_token_ids"]), None)
    return {
        "index": index,
        "token_ids": tokens[:end],
        "logprobs": {"token_logprobs": logps[:end]},
        "finish_reason": "length" if end is None else "stop",
    }
