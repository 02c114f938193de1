"""Byte-level tokenizers made in the test, small enough to reason about."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alignlab.data.settings import TokenSettings

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The last answer begins with an empty thought, which is left out once the dialogue goes on.
FORGETFUL = (
    "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{- m.content ~ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(
    *, template=None, eos="</s>", bos="<s>", adds_bos=False, markers=("<|im_start|>", "<|im_end|>"), merges=()
) -> PreTrainedTokenizerFast:
    """One token per byte, plus merges, plus special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in (bos, eos, *markers) if token]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def token_settings(**changes) -> TokenSettings:
    """Settings for tests: the most careful ones, with changes."""
    settings = {
        "chat_template": "auto",
        "chat_template_kwargs": {},
        "special_tokens": None,
        "loss_on": "assistant",
        "loss_on_reasoning": True,
        "max_tokens_per_sequence": 4096,
        "truncation": "error",
        "max_cut_fraction": 1.0,
        "max_dropped_fraction": 1.0,
        "bad_rows": "error",
        "cross_document_attention": False,
        "number_columns": (),
        "weight_column": None,
        "weighs_turns": True,
    }
    return TokenSettings(**{**settings, **changes})


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}
