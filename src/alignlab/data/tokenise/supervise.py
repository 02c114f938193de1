"""Token ids and mask of a dialogue: which tokens are targets of the loss, and in which context each was answered.

Every supervised turn is a *path*: its context, and its answer, which is supervised. A path that is a leading part of
another is one with it, so a dialogue of ordinary templates is one path. Templates that write earlier turns in another
way give several paths; they share their longest common beginning with the last one, and the rest becomes a branch.

The last supervised token of a turn is one that generation stops on; a line break after it is not supervised. With
``loss_on: all`` the whole dialogue is supervised, and so are answers that it holds in another form only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from alignlab.data.tokenise.dialogue import ANOTHER_TEMPLATE, LEAVE_OUT, Dialogue
from alignlab.data.tokenise.encode import encode_continuation
from alignlab.data.tokenise.turns import Turn, after_prefix, check_answer, check_contents, find_turn, open_answer
from alignlab.types.rows import Message, Row, TokenRow

_ALL = "data.loss_on=all"


@dataclass
class MaskedPath:
    """A sequence as generation would see and continue it.

    Args:
        tokens: Token ids.
        weights: Weight of each in the loss; 0 if it is not supervised.
    """

    tokens: list[int]
    weights: list[float]

    @property
    def first(self) -> int:
        """Position of the first supervised token."""
        return next(position for position, weight in enumerate(self.weights) if weight)

    def join(self, other: "MaskedPath") -> int:
        """Supervise also what another path supervises in their common beginning; return its length."""
        shared = common_length(self.tokens, other.tokens)
        self.weights[:shared] = map(max, self.weights[:shared], other.weights[:shared])
        return shared


@dataclass(frozen=True)
class Group:
    """A prompt with its completions, one after the other."""

    tokens: list[int]
    weights: list[float]
    lengths: list[int]
    branches: dict[int, list[list[int]]]

    def row(self, row: Row, columns: dict[str, Any]) -> TokenRow:
        """The token row of a row, with some numeric columns."""
        supervised, weighs = [weight > 0 for weight in self.weights], not {*self.weights} <= {0.0, 1.0}
        kept = {"columns": columns, "branches": self.branches, "weights": self.weights if weighs else []}
        return TokenRow(self.tokens, supervised, [self.lengths], row.origin, **kept)


def supervise(dialogues: Sequence[Dialogue], num_given: int | None) -> Group:
    """Encode dialogues that share a prompt, and find their supervised tokens.

    Args:
        dialogues: One rendered dialogue for each completion.
        num_given: Number of messages in the prompt; None for everything before the first supervised token.

    Raises:
        InputError: Nothing would be supervised, a turn cannot be found, a turn does not end in a stop token, BOS or EOS
            is doubled, or the template leaves out a content.
    """
    completions = [_paths(dialogue, num_given) for dialogue in dialogues]
    mains = [paths[0] for paths in completions]
    prompt = min(main.first for main in mains)
    if num_given is not None:
        opening = dialogues[0].encode(_opening(dialogues[0], num_given))
        prompt = min(prompt, *(common_length(opening, main.tokens) for main in mains))
        prompt = min(prompt, *(common_length(mains[0].tokens, main.tokens) for main in mains))
    group = Group(mains[0].tokens[:prompt], [0.0] * prompt, [prompt], {})
    for number, (main, *others) in enumerate(completions):
        forks = [common_length(main.tokens, path.tokens) for path in others]
        start = len(group.tokens)
        for fork, path in zip([prompt, *forks], [main, *others], strict=True):
            group.tokens.extend(path.tokens[fork:])
            group.weights.extend(path.weights[fork:])
        group.lengths.append(len(group.tokens) - start)
        if others:
            parts = zip([prompt, *forks], [main, *others], strict=True)
            group.branches[number] = [[fork, len(path.tokens) - fork] for fork, path in parts]
    return group


def _opening(dialogue: Dialogue, num_given: int) -> str:
    """What generation sees of a dialogue whose first messages are given: these, and the prefix of the next one."""
    if "prefix" in dialogue.messages[num_given]:
        return open_answer(dialogue, num_given)
    return dialogue.render(num_given, add_generation_prompt=True)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens at the beginning that two sequences share.

    Args:
        first: Token ids.
        second: Token ids.
    """
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def check_doubled(dialogue: Dialogue, tokens: Sequence[int]) -> None:
    """Check that BOS is not doubled at the beginning, nor EOS anywhere.

    Args:
        dialogue: The dialogue, for the error.
        tokens: Its token ids.

    Raises:
        InputError: One of them is doubled.
    """
    tokenizer = dialogue.context.tokenizer
    doubled = {
        "bos_token": tokenizer.bos_token_id is not None and list(tokens[:2]) == [tokenizer.bos_token_id] * 2,
        "eos_token": any(first == second == tokenizer.eos_token_id for first, second in pairwise(tokens)),
    }
    for name in (name for name, found in doubled.items() if found):
        why = f"{name} appears twice in a row in the rendered dialogue"
        raise dialogue.refusal(why, f"a jinja file that writes {name} once", ANOTHER_TEMPLATE, LEAVE_OUT)


def _paths(dialogue: Dialogue, num_given: int | None) -> list[MaskedPath]:
    """The paths of a dialogue, the one that ends it first."""
    check_contents(dialogue)
    loss_on = dialogue.context.settings.loss_on
    turns = _supervised_turns(dialogue.messages, num_given or 0, loss_on)
    if not turns and loss_on != "all":
        why = f"nothing would be supervised: no assistant turn that counts under data.loss_on={loss_on}"
        raise dialogue.refusal(why, _ALL, "data.columns to name the fields that hold the answers", LEAVE_OUT)
    paths = [_whole(dialogue, num_given)] if loss_on == "all" else []
    for path in paths:
        check_doubled(dialogue, path.tokens)
    for number in reversed(turns):
        turn = find_turn(dialogue, number)
        check_answer(dialogue, number, turn)
        turn = after_prefix(dialogue, number, turn)
        path = _path_of(dialogue, turn, dialogue.messages[number].get("weight", 1.0))
        check_doubled(dialogue, path.tokens)
        _check_end(dialogue, path.tokens, turn)
        _add(paths, path)
    for path in paths[1:]:
        paths[0].join(path)
    for path in paths:
        path.weights[:1] = [0.0]  # Nothing predicts it.
    if not any(paths[0].weights):
        raise dialogue.refusal("nothing would be supervised: the answer is empty", _ALL, ANOTHER_TEMPLATE, LEAVE_OUT)
    return paths


def _add(paths: list[MaskedPath], path: MaskedPath) -> None:
    """Add a path, unless it is the beginning of another; one that continues the first takes its place."""
    if paths and path.join(paths[0]) == len(paths[0].tokens):
        paths[0] = path
        return
    longer = next((known for known in paths if known.tokens[: len(path.tokens)] == path.tokens), None)
    if longer is None:
        paths.append(path)
    else:
        longer.join(path)


def _supervised_turns(messages: Sequence[Message], first: int, loss_on: str) -> list[int]:
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
    return [i for i in (turns[-1:] if loss_on == "last" else turns) if messages[i].get("supervised", True)]


def _whole(dialogue: Dialogue, num_given: int | None) -> MaskedPath:
    """The whole dialogue, supervised after its prompt."""
    if any("weight" in message for message in dialogue.messages):
        why = "a message has a weight of its own, and data.loss_on=all puts everything into the loss"
        raise dialogue.refusal(why, "data.loss_on=assistant", LEAVE_OUT)
    prompt = "" if num_given is None else dialogue.render(num_given, add_generation_prompt=True)
    if not dialogue.text.startswith(prompt):
        raise dialogue.misfit("the rendered prompt is not the beginning of the dialogue")
    return _path_of(dialogue, Turn(prompt, dialogue.text[len(prompt) :]), 1.0)


def _path_of(dialogue: Dialogue, turn: Turn, weight: float) -> MaskedPath:
    """Encode a turn such that the ids before the answer are those of the context.

    A token that would cross the beginning of the answer (an answer that begins with a line break) is split there, as in
    generation.
    """
    given = dialogue.encode(turn.context)
    tokens = dialogue.encode(turn.context + turn.answer)
    if tokens[: len(given)] != given:
        tokens = given + encode_continuation(turn.answer, dialogue.context.tokenizer, dialogue.guard)
    first = len(given)
    if turn.given:
        before = dialogue.encode(turn.context + turn.answer[: turn.given])
        first = max(first, common_length(before, tokens))
    return MaskedPath(tokens, [0.0] * first + [weight] * (len(tokens) - first))


def _check_end(dialogue: Dialogue, tokens: Sequence[int], turn: Turn) -> None:
    """Check that a turn ends in a token that generation stops on; otherwise the model would never learn to stop."""
    stop = dialogue.context.ends.stop
    if not tokens or tokens[-1] not in stop:
        names = dialogue.context.tokenizer.convert_ids_to_tokens(sorted(stop))
        why = f"an answer ends in {turn.answer[-12:]!r}, on which generation does not stop (only on {names})"
        eos = "set the tokenizer's eos_token to the token that ends an answer"
        raise dialogue.refusal(why, ANOTHER_TEMPLATE, LEAVE_OUT, eos)
