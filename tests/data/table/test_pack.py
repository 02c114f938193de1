import pytest

from alignlab.data.table.pack import pack
from alignlab.data.tokenise.rows import tokenize
from alignlab.types.rows import Text, TokenRow
from tests.data.tokenise.tiny_tokenizers import byte_tokenizer, token_settings


def document(*tokens, origin="d:1") -> TokenRow:
    return TokenRow(list(tokens), [False] + [True] * (len(tokens) - 1), [[0, len(tokens)]], origin)


DOCUMENTS = [document(1, 2, 9, origin="a"), document(3, 4, 5, 6, 9, origin="b"), document(7, 9, origin="c")]


def test_blocks_are_cut_exactly_and_keep_documents_apart():
    blocks = list(pack(DOCUMENTS, 4, cross_document_attention=False))
    assert [block.tokens for block in blocks] == [[1, 2, 9, 3], [4, 5, 6, 9], [7, 9]]
    assert [block.groups for block in blocks] == [[[0, 3], [0, 1]], [[0, 4]], [[0, 2]]]
    assert blocks[0].supervised == [False, True, True, False]
    assert [block.origin for block in blocks] == ["a", "b", "c"]


def test_cross_document_attention_makes_one_tree_of_a_block():
    blocks = list(pack(DOCUMENTS, 4, cross_document_attention=True))
    assert [block.groups for block in blocks] == [[[0, 4]], [[0, 4]], [[0, 2]]]
    assert blocks[0].supervised == [False, True, True, True]


@pytest.mark.parametrize("length", range(2, 12))
@pytest.mark.parametrize("cross", [True, False])
def test_no_token_is_lost_or_moved(length, cross):
    blocks = list(pack(DOCUMENTS, length, cross))
    tokens = [token for block in blocks for token in block.tokens]
    assert tokens == [1, 2, 9, 3, 4, 5, 6, 9, 7, 9][: len(tokens)]
    assert len(tokens) == 10 - (10 % length == 1)
    assert all(len(block.tokens) == length for block in blocks[:-1])
    assert all(sum(sum(group) for group in block.groups) == len(block.tokens) for block in blocks)


def test_a_long_document_fills_several_blocks():
    blocks = list(pack([document(*range(7))], 3, cross_document_attention=False))
    assert [block.tokens for block in blocks] == [[0, 1, 2], [3, 4, 5]]


def test_documents_are_joined_by_eos():
    tokenizer = byte_tokenizer(adds_bos=True)
    texts = [Text(origin=f"t:{i}", text=text) for i, text in enumerate(["one", "two"])]
    documents = (tokenize(text, tokenizer, token_settings()) for text in texts)
    (block,) = pack(documents, 100, cross_document_attention=False)
    assert tokenizer.decode(block.tokens) == "<s>one</s><s>two</s>"
    assert block.groups == [[0, 5], [0, 5]]


def test_nothing_gives_nothing():
    assert list(pack([], 4, False)) == []
