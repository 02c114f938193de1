"""Pretraining blocks: documents joined by EOS and cut every so many tokens."""

from collections.abc import Iterable, Iterator

from alignlab.types.rows import TokenRow

_Piece = tuple[list[int], str]


def pack(
    documents: Iterable[TokenRow], max_tokens_per_sequence: int, cross_document_attention: bool
) -> Iterator[TokenRow]:
    """Blocks of exactly ``max_tokens_per_sequence`` tokens; the last one may be shorter.

    Within a block each piece of a document is a tree of its own without a prompt, so that attention stays inside it;
    with ``cross_document_attention`` the whole block is one tree. The first token of a tree is not supervised, since
    nothing predicts it; every other one is. A last block of one token, which predicts nothing, is left out.

    Args:
        documents: Each with its EOS (and BOS, where the tokenizer adds one).
        max_tokens_per_sequence: Length of a block.
        cross_document_attention: Whether documents in one block see each other.
    """
    pieces: list[_Piece] = []
    room = max_tokens_per_sequence
    for document in documents:
        start, end = 0, len(document.tokens)
        while end - start >= room:
            yield _block([*pieces, (document.tokens[start : start + room], document.origin)], cross_document_attention)
            start, pieces, room = start + room, [], max_tokens_per_sequence
        if start < end:
            pieces.append((document.tokens[start:], document.origin))
            room -= end - start
    if sum(len(tokens) for tokens, _ in pieces) > 1:
        yield _block(pieces, cross_document_attention)


def _block(pieces: list[_Piece], cross_document_attention: bool) -> TokenRow:
    """One row of pieces, named after its first document."""
    tokens = [token for piece, _ in pieces for token in piece]
    lengths = [len(tokens)] if cross_document_attention else [len(piece) for piece, _ in pieces]
    supervised = [position > 0 for length in lengths for position in range(length)]
    return TokenRow(tokens, supervised, [[0, length] for length in lengths], pieces[0][1])
