# SPDX-License-Identifier: Apache-2.0
"""Where a continuation ends: its text, and stop strings watched for token by token.

A stop string may begin in one token and end in another, and white space may belong to it. What counts is the decoded
text; most tokens cannot complete a stop string, so that most are never decoded while a text grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PARTIAL = "\ufffd"
"""What half a character decodes to; the next token may still complete it."""
_MARGIN = 8
"""Characters at the start of a decoded tail that may differ from the whole text: a lost space, half a character."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A continuation: its token ids without end-of-sequence, its text, and whether it ended by itself.

    One that was stopped at a stop string holds the tokens up to the one that completed it, and did not end by itself.
    """

    ids: tuple[int, ...]
    text: str
    finished: bool


def generation(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, finished: bool) -> Generation:
    """Return a continuation with its text."""
    return Generation(tuple(ids), decoded(tokenizer, ids).strip(), finished)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids without special tokens, white space kept."""
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


def cut_before(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop strings, and whether there was one."""
    ends = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(ends, default=len(text))], bool(ends)


class StopStrings:
    """Tells after which token a text that must end before some strings need not grow any further.

    From then on `cut_before` gives the same text whatever follows. Where that can be told of no prefix, because the
    tokenizer rewrites text that it gave already or a stop string holds half a character, no text ends early.

    Args:
        tokenizer: turns ids into text.
        stop: the strings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop) if grows_steadily(tokenizer) and not any(_PARTIAL in word for word in stop) else ()
        self._completes: dict[int, bool] = {}

    def first_end(self, ids: Sequence[int]) -> int:
        """Return how many of the ids a text needs, all of them if it is not stopped."""
        watch = Watch(self)
        return next((n for n in range(1, len(ids) + 1) if watch.ends(ids[:n])), len(ids))

    def may_complete(self, token: int) -> bool:
        """Return whether a stop string can end within the text of a token, whatever stands before it."""
        if token not in self._completes:
            self._completes[token] = any(_ends_within(word, piece) for word in self._stop for piece in self._of(token))
        return self._completes[token]

    def in_tail(self, ids: Sequence[int]) -> bool:
        """Return whether a stop string seems to be in the last tokens, far enough back to see one that just ended."""
        pieces = max(map(len, self._of(ids[-1])))
        enough = pieces + max(map(len, self._stop)) + _MARGIN
        take = enough
        while len(text := decoded(self._tokenizer, ids[-take:])) < enough and take < len(ids):
            take *= 2
        return any(word in text for word in self._stop)

    def settled(self, ids: Sequence[int]) -> bool | None:
        """Return whether the first stop string in the text is known for good; None if there is none in it."""
        text = decoded(self._tokenizer, ids)
        before, found = cut_before(text, self._stop)
        if not found:
            return None
        return not any(_unfinished(word, text, len(before)) for word in self._stop)

    def _of(self, token: int) -> tuple[str, ...]:
        """Return the texts that a token can stand for: at the start of a text, and further on."""
        first, both = decoded(self._tokenizer, [token]), decoded(self._tokenizer, [token, token])
        return first, both.removeprefix(first) if both.startswith(first) else both


class Watch:
    """Follows one growing text; see `StopStrings`."""

    def __init__(self, strings: StopStrings) -> None:
        self._strings, self._found = strings, False

    def ends(self, ids: Sequence[int]) -> bool:
        """Return whether the text can end here; asked once after every token, with all ids so far."""
        if not self._found:
            self._found = self._strings.may_complete(ids[-1]) and self._strings.in_tail(ids)
        if not self._found:
            return False
        settled = self._strings.settled(ids)
        self._found = settled is not None
        return bool(settled)


def grows_steadily(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the text of some ids, half characters apart, stays as it is when further ids follow."""
    if not tokenizer.clean_up_tokenization_spaces:
        return True
    if not tokenizer.is_fast or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output:
        return False
    return type(tokenizer.backend_tokenizer.model).__name__ == "BPE"  # transformers never cleans up behind those


def _ends_within(word: str, piece: str) -> bool:
    """Return whether an occurrence of `word` can end inside `piece`, with its start in what stands before."""
    return _PARTIAL in piece or word in piece or any(word.endswith(piece[:n]) for n in range(1, len(piece) + 1))


def _unfinished(word: str, text: str, place: int) -> bool:
    """Return whether `word` may still turn out to begin before `place`; half a character at the end can become any."""
    text = text.rstrip(_PARTIAL)
    return any(word.startswith(text[start:]) for start in range(max(0, len(text) - len(word) + 1), place))
