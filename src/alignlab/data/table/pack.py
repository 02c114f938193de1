"""Packing of documents into pretraining blocks of equal length."""

from collections.abc import Iterable, Iterator

from alignlab.types.rows import TokenRow

_Piece = tuple[list[int], str]


def pack(
    documents: Iterable[TokenRow], max_tokens_per_sequence: int, cross_document_attention: bool
) -> Iterator[TokenRow]:
    """Pack documents into blocks of exactly ``max_tokens_per_sequence`` tokens; the last block may be shorter.

    Within a block each piece of a document is a group of its own without a prompt, so attention stays inside the piece;
    with ``cross_document_attention`` the whole block is one group. Every token of a group but the first is supervised;
    nothing predicts the first. A last block of one token, which predicts nothing, is left out.

    Args:
        documents: Documents that end in EOS (and begin with BOS, if the tokenizer adds it).
        max_tokens_per_sequence: Length of a block in tokens.
        cross_document_attention: Whether documents in one block attend to each other.
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
    """Join pieces to one row, with the origin of the first document."""
    tokens = [token for piece, _ in pieces for token in piece]
    lengths = [len(tokens)] if cross_document_attention else [len(piece) for piece, _ in pieces]
    supervised = [position > 0 for length in lengths for position in range(length)]
    return TokenRow(tokens, supervised, [[0, length] for length in lengths], pieces[0][1])
