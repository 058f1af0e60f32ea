"""Syntax: passages of source files, and the node of the syntax tree that each character is of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node, Parser


class Language(Enum):
    """Programming languages whose grammar is installed.

    Attributes:
        python, java, c: by the packages tree-sitter-python, tree-sitter-java and tree-sitter-c.
    """

    python = "python"
    java = "java"
    c = "c"


@dataclass(frozen=True)
class Passage:
    """Consecutive lines of a file.

    Attributes:
        file: number of the file.
        text: the lines.
        leaves: for each leaf of the syntax tree in these lines, where it begins and ends in characters of the text, its
            type, and the types of all nodes that it is in, itself included. Only named nodes have a type: an unnamed
            leaf, such as a keyword or a bracket, has the type of the named node around it.
    """

    file: int
    text: str
    leaves: Sequence[tuple[int, int, str, frozenset[str]]]

    def types(self, spans: Sequence[tuple[int, int]]) -> list[tuple[str, frozenset[str]] | None]:
        """Return the type of each token's leaf and the types of all nodes that it is in; None for white space alone.

        A token may be of several leaves, or of white space and a leaf: the leaf with which it shares most characters
        counts, the first one of equals.

        Args:
            spans: where each token begins and ends, in characters of the text.
        """
        found: list[tuple[str, frozenset[str]] | None] = []
        first = 0
        for begin, end in spans:
            while first < len(self.leaves) and self.leaves[first][1] <= begin:
                first += 1
            best, shared = None, 0
            for leaf_begin, leaf_end, kind, around in self.leaves[first:]:
                if leaf_begin >= end:
                    break
                common = min(end, leaf_end) - max(begin, leaf_begin)
                if common > shared:
                    best, shared = (kind, around), common
            found.append(best)
        return found


def passages(files: Iterable[str], language: Language, characters: int) -> Iterator[Passage]:
    """Yield the passages of source files; a file that the grammar cannot parse has none.

    Args:
        files: the files' texts.
        language: of the files.
        characters: of a passage, about: it ends with the line in which it has as many.

    Raises:
        ValueError: the grammar is not installed.
    """
    parser = _parser(language)
    for number, text in enumerate(files):
        # A file with a carriage return or a surrogate would shift bytes against characters.
        encoded = text.encode("utf-8", "replace")
        tree = parser.parse(encoded)
        if tree.root_node.has_error:
            continue
        leaves = list(_leaves(tree.root_node, encoded))
        place_of = _characters(encoded)
        begin, first = 0, 0
        for end in _ends(encoded, characters):
            own = []
            while first < len(leaves) and leaves[first].begin < end:
                if leaves[first].end > end:
                    break
                own.append(leaves[first])
                first += 1
            # A leaf over several passages, such as a long string, is in each of them.
            if first < len(leaves) and leaves[first].begin < end:
                own.append(leaves[first])
            offset = place_of[begin]
            yield Passage(
                number,
                encoded[begin:end].decode("utf-8"),
                [
                    (
                        place_of[max(leaf.begin, begin)] - offset,
                        place_of[min(leaf.end, end)] - offset,
                        leaf.around[-1],
                        frozenset(leaf.around),
                    )
                    for leaf in own
                    if leaf.around
                ],
            )
            begin = end


class _Leaf(NamedTuple):
    """Bytes from `begin` to `end` that no node inside them has, and the types of the named nodes around them."""

    begin: int
    end: int
    around: tuple[str, ...]


def _leaves(root: "Node", encoded: bytes) -> Iterator[_Leaf]:
    """Yield the leaves of a tree in order, with the types of the named nodes around them, the root's left out.

    Text between a node's children is a leaf, too: of a string with an escape sequence only that is a node.
    """
    # A node to divide, or a leaf.
    stack: list[tuple[Node, tuple[str, ...]] | _Leaf] = [(root, ())]
    while stack:
        top = stack.pop()
        if isinstance(top, _Leaf):
            yield top
            continue
        node, around = top
        if not node.children:
            if node.end_byte > node.start_byte:
                yield _Leaf(node.start_byte, node.end_byte, around)
            continue
        inside: list[tuple[Node, tuple[str, ...]] | _Leaf] = []
        place = node.start_byte
        for child in node.children:
            if encoded[place : child.start_byte].strip():
                inside.append(_Leaf(place, child.start_byte, around))
            inside.append((child, (*around, child.type) if child.is_named else around))
            place = child.end_byte
        if encoded[place : node.end_byte].strip():
            inside.append(_Leaf(place, node.end_byte, around))
        stack.extend(reversed(inside))


def _ends(encoded: bytes, characters: int) -> Iterator[int]:
    """Yield where passages end: after whole lines."""
    begin = 0
    while begin < len(encoded):
        line = encoded.find(b"\n", min(begin + characters, len(encoded)) - 1)
        begin = len(encoded) if line < 0 else line + 1
        yield begin


def _characters(encoded: bytes) -> list[int]:
    """Return how many characters begin before each byte: a tree's positions are bytes."""
    counts, count = [], 0
    for byte in encoded:
        counts.append(count)
        # A byte 10xxxxxx continues a character.
        count += (byte & 0xC0) != 0x80
    return [*counts, count]


@cache
def _parser(language: Language) -> "Parser":
    try:
        from tree_sitter import Language as Grammar
        from tree_sitter import Parser

        grammar = import_module(f"tree_sitter_{language.name}")
    except ImportError as error:
        raise ValueError(
            f"the grammar of {language.name} is not installed ({error}): pip install 'fsae[code]'"
        ) from None
    return Parser(Grammar(grammar.language()))
