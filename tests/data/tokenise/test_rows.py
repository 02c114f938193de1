import gzip
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from alignlab.data.formats.conversions import convert
from alignlab.data.table.counts import Dropped
from alignlab.data.tokenise.rows import tokenize, tokenize_counted
from alignlab.data.tokenise.templates import choose_template, set_template
from alignlab.data.tokenise.truncate import truncate
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.errors import InputError
from alignlab.types.layout import find_paths
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, Unpaired, longest_sequence
from tests.data.tokenise.tiny_tokenizers import CHATML, FORGETFUL, assistant, byte_tokenizer, token_settings, user

TOKENIZERS = ["bytes", "bytes with bos", "minimind", "qwen2.5", "qwen3", "smollm2", "stories260K"]
SYSTEM = {"role": "system", "content": "Be kind."}
SINGLE = (user("Hi there"), assistant("Hello, you."))
MULTI = (SYSTEM, user("One"), assistant("First"), user("Two"), assistant("Second 这是"))


# The rendering of an earlier turn depends on whether the dialogue goes on.
@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, tmp_path_factory):
    """Tokenizers made here and real ones, unpacked, with their own or the fallback template."""
    if request.param.startswith("bytes"):
        return byte_tokenizer(template=CHATML, adds_bos=request.param == "bytes with bos")
    folder = tmp_path_factory.mktemp(request.param)
    data = request.getfixturevalue("shared") / "data"
    source = data / "models" / "stories260K" if request.param == "stories260K" else data / "tokenizers" / request.param
    shutil.copy(source / "tokenizer_config.json", folder)
    packed = data / "tokenizers" / request.param.replace("qwen3", "qwen2.5") / "tokenizer.json.gz"
    if packed.exists():
        (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    else:
        shutil.copy(source / "tokenizer.json", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_template(tokenizer, "auto")
    return tokenizer


@pytest.fixture
def tiny():
    return byte_tokenizer(template=CHATML)


def demonstration(*messages, **fields) -> Demonstration:
    return Demonstration(origin="rows.jsonl:3", messages=messages, **fields)


def generation_prefix(tokenizer, messages) -> list[int]:
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


def spans(row) -> list[tuple[int, int]]:
    """Starts and ends of the supervised spans."""
    flags = [False, *row.supervised, False]
    edges = [i for i, (before, here) in enumerate(pairwise(flags)) if before != here]
    return list(zip(edges[::2], edges[1::2], strict=True))


def supervised_text(row, tokenizer) -> list[str]:
    return [tokenizer.decode(row.tokens[start:end]) for start, end in spans(row)]


# --- the duties, over several tokenizers ------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("loss_on", ["assistant", "last"])
def test_train_prefix_equals_generation_prefix(tokenizer, messages, loss_on):
    row = tokenize(demonstration(*messages), tokenizer, token_settings(loss_on=loss_on))
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns = turns if loss_on == "assistant" else turns[-1:]
    contexts = []
    for path in find_paths(row.groups, row.branches):
        tokens = [token for start, end in path.context for token in row.tokens[start:end]]
        flags = row.supervised[path.start : path.start + path.length]
        starts = [i for i, (before, here) in enumerate(pairwise([False, *flags])) if here and not before]
        contexts += [tokens + row.tokens[path.start : path.start + start] for start in starts]
    assert sorted(contexts) == sorted(generation_prefix(tokenizer, messages[:turn]) for turn in turns)
    # A template that strips the thinking of earlier turns gives them branches.
    thinks = "enable_thinking" in tokenizer.chat_template and messages is MULTI and loss_on == "assistant"
    assert bool(row.branches) == thinks
    assert row.groups == [[spans(row)[0][0], len(row.tokens) - spans(row)[0][0]]]


@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_terminal_token_supervised(tokenizer, messages):
    row = tokenize(demonstration(*messages), tokenizer, token_settings(loss_on="last"))
    stop = stop_tokens(tokenizer, choose_template(tokenizer, "auto"))
    assert row.supervised[-1]
    assert row.tokens[-1] in stop
    assert (
        supervised_text(row, tokenizer)[-1]
        .removesuffix(tokenizer.decode(row.tokens[-1:]))
        .endswith(messages[-1]["content"])
    )


def test_no_double_bos_eos(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for row in (demonstration(*SINGLE), Text(origin="a:1", text="A story.")):
        tokens = tokenize(row, tokenizer, token_settings(loss_on="last")).tokens
        assert bos is None or tokens[:2] != [bos, bos]
        assert (eos, eos) not in pairwise(tokens)


def test_preference_shares_the_prompt_that_generation_sees(tokenizer):
    rejected = ((assistant("Bye."),), (assistant("\nNo"),))
    row = Preference(origin="p:1", prompt=(user("Hi"),), chosen=(assistant("Hello."),), rejected=rejected)
    tokens = tokenize(row, tokenizer, token_settings())
    prompt, *completions = tokens.groups[0]
    assert tokens.tokens[:prompt] == generation_prefix(tokenizer, row.prompt)
    assert len(completions) == 3
    assert all(tokens.supervised[prompt:]) and not any(tokens.supervised[:prompt])
    assert "Hello." in tokenizer.decode(tokens.tokens[prompt : prompt + completions[0]])


def test_prompt_is_what_generation_sees(tokenizer):
    row = tokenize(Prompt(origin="p:1", prompt=(SYSTEM, user("Hi"))), tokenizer, token_settings())
    assert row.tokens == generation_prefix(tokenizer, (SYSTEM, user("Hi")))
    assert row.groups == [[len(row.tokens)]] and not any(row.supervised)


def test_contents_cannot_forge_turns(tokenizer):
    """A token of the template in a content becomes text: the number of such tokens is that of a harmless dialogue."""
    named = (token for token in tokenizer.special_tokens_map.values() if isinstance(token, str))
    special = {*tokenizer.convert_tokens_to_ids(list(named))}
    special |= stop_tokens(tokenizer, choose_template(tokenizer, "auto"))
    special |= {*tokenizer.all_special_ids} & {*generation_prefix(tokenizer, SINGLE)}
    everything = "".join(sorted(tokenizer.convert_ids_to_tokens(sorted(special))))
    forged = demonstration(user(f"Hi{everything}there"), assistant(f"{everything}Hello{everything}"))
    row = tokenize(forged, tokenizer, token_settings())
    harmless = tokenize(demonstration(user("Hi"), assistant("Hello")), tokenizer, token_settings())
    assert [t for t in row.tokens if t in special] == [t for t in harmless.tokens if t in special]
    assert everything in tokenizer.decode(row.tokens)
    assert supervised_text(row, tokenizer)[0].count(tokenizer.decode(row.tokens[-1:])) > 1


# --- logic, with tokenizers made here ---------------------------------------------------------------------------------


def test_supervised_spans_hold_answer_and_end_token_only(tiny):
    row = tokenize(demonstration(*MULTI), tiny, token_settings())
    assert supervised_text(row, tiny) == ["First<|im_end|>", "Second 这是<|im_end|>"]


def test_what_follows_the_last_supervised_token_is_cut_off(tiny):
    row = tokenize(demonstration(user("Q"), assistant("A"), user("never answered")), tiny, token_settings())
    assert row == tokenize(demonstration(user("Q"), assistant("A")), tiny, token_settings())


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("assistant", ["A<|im_end|>", "B<|im_end|>"]),
        ("last", ["B<|im_end|>"]),
        (
            "all",
            [
                "user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n"
                "<|im_start|>assistant\nB<|im_end|>"
            ],
        ),
    ],
)
def test_loss_on(tiny, loss_on, expected):
    messages = (user("Q"), assistant("A"), user("R"), assistant("B"))
    row = tokenize(demonstration(*messages), tiny, token_settings(loss_on=loss_on))
    assert supervised_text(row, tiny) == expected


def test_unsupervised_messages_are_left_out(tiny):
    row = tokenize(
        demonstration(user("Q"), assistant("A", supervised=False), user("R"), assistant("B")), tiny, token_settings()
    )
    assert supervised_text(row, tiny) == ["B<|im_end|>"]
    assert "A<|im_end|>" in tiny.decode(row.tokens)


@pytest.mark.parametrize(
    ("messages", "loss_on"),
    [
        ((user("Q"), assistant("A", supervised=False)), "assistant"),
        ((user("Q"), assistant("A"), user("R"), assistant("B", supervised=False)), "last"),
        ((user("Q"),), "assistant"),
    ],
)
def test_mask_nonempty_or_refuse(tiny, messages, loss_on):
    with pytest.raises(InputError) as caught:
        tokenize(demonstration(*messages), tiny, token_settings(loss_on=loss_on))
    assert "nothing would be supervised" in caught.value.why
    assert "rows.jsonl:3" in caught.value.asked and "data.chat_template=auto" in caught.value.asked
    assert caught.value.instead.count("; or ") == 2


def test_unsupervised_end_token_is_refused_with_three_remedies():
    tokenizer = byte_tokenizer(template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(InputError, match="generation does not stop") as caught:
        tokenize(demonstration(*SINGLE), tokenizer, token_settings())
    assert caught.value.instead.count("; or ") == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token ~ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "bos_token appears twice"),
        ("{% for m in messages %}{{ m.content ~ eos_token ~ eos_token }}{% endfor %}", "eos_token appears twice"),
    ],
)
def test_doubled_bos_or_eos_is_refused(template, message):
    tokenizer = byte_tokenizer(template=template)
    with pytest.raises(InputError, match=message):
        tokenize(demonstration(*SINGLE), tokenizer, token_settings())


@pytest.mark.parametrize("same", [True, False], ids=["eos is pad", "eos is bos"])
def test_masks_go_by_position_not_by_pad_id(same):
    tokenizer = byte_tokenizer(template=CHATML, eos="<|im_end|>", bos="<|im_end|>" if not same else None)
    tokenizer.pad_token = "<|im_end|>"
    assert tokenize(demonstration(*SINGLE), tokenizer, token_settings()).supervised[-1]


def test_an_answer_that_would_merge_with_its_opening_is_split_as_in_generation():
    tokenizer = byte_tokenizer(template=CHATML, merges=[("Ċ", "Ċ")])
    row = tokenize(demonstration(user("Q"), assistant("\nA")), tokenizer, token_settings())
    assert row.tokens[: row.groups[0][0]] == generation_prefix(tokenizer, (user("Q"),))
    assert supervised_text(row, tokenizer) == ["\nA<|im_end|>"]


def test_an_earlier_answer_that_merges_is_split_in_a_branch():
    tokenizer = byte_tokenizer(template=CHATML, merges=[("Ċ", "Ċ")])
    row = tokenize(demonstration(user("Q"), assistant("\nA"), user("R"), assistant("B")), tokenizer, token_settings())
    # In the prompt of the second answer the line breaks are one token, as generation would encode them.
    (prompt, main), (fork, length) = row.branches[0]
    shown = generation_prefix(tokenizer, (user("Q"), assistant("\nA"), user("R")))
    assert row.tokens[:prompt] == shown and prompt + main < len(row.tokens)
    assert row.tokens[:fork] + row.tokens[-length:-3] == generation_prefix(tokenizer, (user("Q"),))
    assert tokenizer.decode(row.tokens[-3:]) == "\nA<|im_end|>"
    assert row.supervised[-length:] == [False] * (length - 3) + [True] * 3


def test_template_that_rewrites_earlier_turns():
    tokenizer = byte_tokenizer(template=FORGETFUL)
    messages = (user("Q"), assistant("A"), user("R"), assistant("B"))
    row = tokenize(demonstration(*messages), tokenizer, token_settings())
    assert supervised_text(row, tokenizer) == ["<think></think>B<|im_end|><think></think>A<|im_end|>"]
    first = generation_prefix(tokenizer, messages[:1])
    assert row.branches == {
        0: [[row.groups[0][0], len("<think></think>B") + 1], [len(first), len("<think></think>A") + 1]]
    }
    last = tokenize(demonstration(*messages), tokenizer, token_settings(loss_on="last"))
    assert supervised_text(last, tokenizer) == ["<think></think>B<|im_end|>"] and not last.branches


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content ~ eos_token }}{% endfor %}", MULTI),
        ("{{ raise_exception('System role not supported') }}", MULTI),
        ("{{ messages[0].content ~ messages[1].content.strip() }}", (assistant("I begin"),)),
        ("{% for m in messages %}{{ m.content + m.count }}{% endfor %}", ({**user("Q"), "count": 1}, assistant("A"))),
        (CHATML, (user("Q"), assistant("A", reasoning_content="lost"))),
        (CHATML, (user("Q"), assistant("", tool_calls=[{"function": {"name": "lost", "arguments": {}}}]))),
    ],
    ids=["drops the system", "raises", "needs a prompt", "adds a number", "drops reasoning", "drops tool calls"],
)
def test_template_that_cannot_render_the_row(template, messages):
    with pytest.raises(InputError, match=r"rows\.jsonl:3.*the template .*data\.chat_template=chatml"):
        tokenize(demonstration(*messages), byte_tokenizer(template=template), token_settings())


def test_half_a_surrogate_is_refused(tiny):
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenize(demonstration(user("\ud800"), assistant("A")), tiny, token_settings())


def test_bad_rows_can_be_dropped_and_counted(tiny):
    row = demonstration(user("Q"))
    outcome, counts = tokenize_counted(row, tiny, token_settings(bad_rows="drop"))
    assert isinstance(outcome, Dropped) and "nothing would be supervised" in outcome.detail
    assert (counts.dropped_rows, counts.reasons) == (1, {"cannot be tokenised": 1})


def test_forged_markers_with_guard_characters_inside(tiny):
    content = "\ufdd0<|im_end|>\ufdd1</s>"
    row = tokenize(demonstration(user("Q"), assistant(content)), tiny, token_settings())
    assert supervised_text(row, tiny) == [content + "<|im_end|>"]
    end = tiny.convert_tokens_to_ids("<|im_end|>")
    assert row.tokens.count(end) == 2 and tiny.eos_token_id not in row.tokens


def test_with_template_none_markers_in_contents_count(tiny):
    row = tokenize(demonstration(user("<|im_start|>Q"), assistant("A")), tiny, token_settings(chat_template="none"))
    assert row.tokens[0] == tiny.convert_tokens_to_ids("<|im_start|>")
    assert supervised_text(row, tiny) == ["A</s>"]


def test_without_a_prompt_the_first_token_is_not_supervised(tiny):
    row = tokenize(demonstration(assistant("AB")), tiny, token_settings(chat_template="none"))
    assert row.groups == [[1, 2]]
    assert row.supervised == [False, True, True]


def test_preference_layout_and_numbers(tiny):
    row = Preference(
        origin="p:1",
        prompt=(user("Q"), assistant("earlier"), user("R")),
        chosen=(assistant("A"),),
        rejected=((assistant("BB"),), (assistant("CCC"),)),
        scores=(3.0, 2.0, 1.0),
        columns={"margin": 0.5, "note": "x"},
    )
    tokens = tokenize(row, tiny, token_settings())
    assert tokens.groups == [[len(generation_prefix(tiny, row.prompt)), 2, 3, 4]]
    assert tokens.columns == {"margin": 0.5, "scores": [3.0, 2.0, 1.0]}
    assert tiny.decode([t for t, s in zip(tokens.tokens, tokens.supervised, strict=True) if s]) == (
        "A<|im_end|>BB<|im_end|>CCC<|im_end|>"
    )


def test_completion_of_several_turns_keeps_the_given_prompt(tiny):
    completion = (assistant("A"), user("more"), assistant("B"))
    row = Unpaired(origin="u:1", prompt=(user("Q"),), completion=completion, desirable=True)
    tokens = tokenize(row, tiny, token_settings(loss_on="last"))
    assert tokens.groups[0][0] == len(generation_prefix(tiny, row.prompt))
    assert supervised_text(tokens, tiny) == ["B<|im_end|>"]
    assert tokens.columns == {"desirable": True}


@pytest.mark.parametrize("adds_bos", [True, False])
def test_text_is_a_document_that_ends_in_eos(adds_bos):
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    row = tokenize(Text(origin="t:1", text="ab</s>"), tokenizer, token_settings(max_tokens_per_sequence=2))
    assert tokenizer.decode(row.tokens) == "<s>" * adds_bos + "ab</s></s>"
    assert row.tokens.count(tokenizer.eos_token_id) == 1
    assert row.supervised == [False] + [True] * (len(row.tokens) - 1)


def test_text_needs_an_eos():
    with pytest.raises(InputError, match="no eos_token"):
        tokenize(Text(origin="t:1", text="ab"), byte_tokenizer(eos=None), token_settings(chat_template="chatml"))


WEIGHTS = Demonstration(
    origin="f:1",
    messages=(
        user("q"),
        assistant("a", weight=0.5),
        user("r"),
        assistant("b", supervised=False),
        user("s"),
        assistant("c"),
    ),
)


@pytest.mark.parametrize("template", [CHATML, FORGETFUL])
def test_every_token_of_a_turn_has_its_weight(template):
    """Also where earlier turns are branches, and where a row is cut."""
    tokenizer = byte_tokenizer(template=template)
    row = tokenize(WEIGHTS, tokenizer, token_settings())
    by_weight = {w: [t for t, x in zip(row.tokens, row.weights, strict=True) if x == w] for w in (0.0, 0.5, 1.0)}
    said = {w: tokenizer.decode(tokens).replace("<think></think>", "") for w, tokens in by_weight.items()}
    assert (said[0.5], said[1.0]) == ("a<|im_end|>", "c<|im_end|>")
    assert row.supervised == [weight > 0 for weight in row.weights]
    plain = [{k: v for k, v in m.items() if k != "weight"} for m in WEIGHTS.messages]
    unweighted = tokenize(replace(WEIGHTS, messages=tuple(plain)), tokenizer, token_settings())
    assert unweighted == replace(row, weights=[])
    limit = longest_sequence(row) - 2
    for policy in ("left_prompt", "right_completion"):
        cut = truncate(row, limit, policy)
        assert len(cut.tokens) == len(cut.weights) and cut.supervised == [weight > 0 for weight in cut.weights]
        assert 0.5 in cut.weights


def test_weights_of_turns_are_refused_where_they_would_be_ignored():
    tokenizer = byte_tokenizer(template=CHATML)
    with pytest.raises(InputError, match="the method does not weigh turns"):
        tokenize(WEIGHTS, tokenizer, token_settings(weighs_turns=False))
    with pytest.raises(InputError, match="puts everything into the loss"):
        tokenize(WEIGHTS, tokenizer, token_settings(loss_on="all"))
    with pytest.raises(InputError, match="documents have none"):
        convert(WEIGHTS, Text)
