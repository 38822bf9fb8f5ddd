"""How a guide with another vocabulary reads the base's tokens one by one (`vocab_mapping: shared-strings`).

A base token that stands for the same bytes as one of the guide's is that token; any other is the guide's own
encoding of its text. The guide's guidance exists for tokens that it has itself; the others are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ivg.models.token_bytes import encode_inside, lone_bytes, opens_like_inside, token_bytes
from ivg.models.vocab import special_tokens

# A text of several kinds, on which the share of tokens that can be guided is measured.
SAMPLE_TEXT = """\
When the train stopped at a small station near the lake, Maria put down her book and looked out of the
window. It had rained since 7:45, and nobody seemed to be waiting there. "Are we late again?" she asked the
man across from her, who didn't answer at first. He folded his newspaper, smiled, and said that in
twenty-three years he had never once arrived on time; it was, after all, a very old railway.

To keep tomatoes fresh:
1. Leave them at room temperature (about 20 °C) until they are ripe.
2. Don't wash them before you need them.
3. Once they have been cut, store them in a closed box, and eat them within two days!

def average(numbers: list[float]) -> float:
    if not numbers:
        raise ValueError("nothing to average")
    return sum(numbers) / len(numbers)

The café's owner, a naïve optimist, charged €3.50 for coffee. In general, learning a language well takes
more patience than talent: read every day, speak with people whenever possible, and expect mistakes.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """Per base id: the guide's ids for it, and its counterpart in the guide's vocabulary, if it has one."""

    pieces: tuple[tuple[int, ...], ...]
    counterparts: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenReadings:
    """How the guide reads each base token.

    Attributes:
        inside: behind other tokens of the response.
        opening: as the first of a turn, where SentencePiece writes a space that is none of the text; the same
            object as `inside` where there is no difference.
    """

    inside: Reading
    opening: Reading

    @property
    def max_pieces(self) -> int:
        """The most ids that one base token becomes."""
        return max(map(len, itertools.chain(self.inside.pieces, self.opening.pieces)))


@functools.lru_cache(maxsize=2)  # takes seconds for large vocabularies, and a dry run asks several times
def read_tokens(
    base: PreTrainedTokenizerBase,
    guide: PreTrainedTokenizerBase,
    *,
    num_ids: int,
    eos_ids: tuple[int, ...],
    end_id: int | None,
    opens_turn: bool = False,
) -> TokenReadings:
    """Work out how the guide reads each of the base's tokens.

    Args:
        base: tokenizer of the frozen base.
        guide: tokenizer of the pair.
        num_ids: V, size of the base's output; ids without a token are read as nothing.
        eos_ids: the base's EOS; each stands for the guide's end.
        end_id: what ends a response for the guide.
        opens_turn: whether a response opens a turn of the guide's chat template, so that its first token is
            read as the opening of a text. Else it continues the prompt's text, spaces included.
    """
    bytes_of = token_bytes(base, num_ids)
    special = _special_counterparts(base, guide, num_ids) | dict.fromkeys(eos_ids, end_id)
    inside = _read_inside(bytes_of, guide, special)
    if not opens_turn or (opens_like_inside(base) and opens_like_inside(guide)):
        return TokenReadings(inside, inside)
    return TokenReadings(inside, _read_opening(base, bytes_of, guide, special, inside))


def guided_share(
    base: PreTrainedTokenizerBase, readings: TokenReadings, texts: Iterable[str]
) -> float | None:
    """Return which share of the tokens of running text has a counterpart; None where there are none.

    Args:
        base: tokenizer of the frozen base.
        readings: how the guide reads its tokens.
        texts: what to measure on; special tokens do not count.
    """
    special = set(base.all_special_ids)
    ids = [i for text in texts for i in base(text, add_special_tokens=False)["input_ids"] if i not in special]
    counterparts = readings.inside.counterparts
    num_guided = sum(i < len(counterparts) and counterparts[i] is not None for i in ids)
    return num_guided / len(ids) if ids else None


def _special_counterparts(
    base: PreTrainedTokenizerBase, guide: PreTrainedTokenizerBase, num_ids: int
) -> dict[int, int | None]:
    """Return the base's special tokens and those of the same name in the guide, which stand for no text."""
    ours, theirs = base.get_vocab(), guide.get_vocab()
    named = special_tokens(guide)
    return {
        ours[token]: theirs.get(token) if token in named else None
        for token in special_tokens(base)
        if ours.get(token, num_ids) < num_ids
    }


def _read_inside(
    bytes_of: Sequence[bytes | None], guide: PreTrainedTokenizerBase, special: dict[int, int | None]
) -> Reading:
    known = _ids_by_bytes(guide)
    counterparts = [
        special.get(i) if i in special or b is None else known.get(b) for i, b in enumerate(bytes_of)
    ]
    pieces: list[tuple[int, ...]] = [() if own is None else (own,) for own in counterparts]
    to_encode = [i for i, own in enumerate(counterparts) if own is None and i not in special and bytes_of[i]]
    split = [_split_characters(bytes_of[i] or b"") for i in to_encode]
    texts = [part for parts in split for part in parts if isinstance(part, str)]
    encoded = iter(encode_inside(guide, texts))
    for i, parts in zip(to_encode, split, strict=True):
        of_parts = [next(encoded) if isinstance(part, str) else _one(known.get(part)) for part in parts]
        pieces[i] = tuple(itertools.chain(*of_parts))
    return Reading(tuple(pieces), tuple(counterparts))


def _read_opening(
    base: PreTrainedTokenizerBase,
    bytes_of: Sequence[bytes | None],
    guide: PreTrainedTokenizerBase,
    special: dict[int, int | None],
    inside: Reading,
) -> Reading:
    """Read each token as a whole response: in the text that the base makes of it, as the guide encodes it."""
    ids = [i for i, b in enumerate(bytes_of) if b and i not in special and _is_text(b)]
    texts = base.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    encoded = guide(texts, add_special_tokens=False)["input_ids"] if texts else []
    pieces, counterparts = list(inside.pieces), list(inside.counterparts)
    for i, own in zip(ids, encoded, strict=True):
        pieces[i] = tuple(own)
        counterparts[i] = own[0] if len(own) == 1 else None
    return Reading(tuple(pieces), tuple(counterparts))


def _ids_by_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """Return the id for each string of bytes that has one: of several, a token of text before a lone byte."""
    num_ids = max(tokenizer.get_vocab().values()) + 1
    lone = lone_bytes(tokenizer, num_ids)
    found: dict[bytes, int] = {}
    bytes_of = token_bytes(tokenizer, num_ids)
    for id_ in sorted(range(num_ids), key=lambda i: (i in lone, i)):
        if own := bytes_of[id_]:
            found.setdefault(own, id_)
    return found


def _is_text(content: bytes) -> bool:
    return all(isinstance(part, str) for part in _split_characters(content))


def _split_characters(content: bytes) -> list[str | bytes]:
    """Split bytes into texts of whole characters, and the bytes between them, each by itself."""
    text = content.decode("utf-8", errors="surrogateescape")
    parts: list[str | bytes] = []
    for is_stray, group in itertools.groupby(text, key=lambda c: "\udc80" <= c <= "\udcff"):
        run = "".join(group)
        parts += [bytes([ord(c) - 0xDC00]) for c in run] if is_stray else [run]
    return parts


def _one(id_: int | None) -> tuple[int, ...]:
    return () if id_ is None else (id_,)
