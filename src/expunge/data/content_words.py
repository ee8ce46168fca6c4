# SPDX-License-Identifier: Apache-2.0
"""Which words of an English text carry facts: all but the closed classes, whose words can be listed."""

from __future__ import annotations

import re

_WORD = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*", re.UNICODE)

#: Words that hold sentences together, by part of speech. What is in none of these lists is taken for a noun, name,
#: verb, adjective or number.
_CLOSED = {
    "determiner": "a an the this that these those each every either neither some any no all both half such another "
    "other others own same",
    "pronoun": "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves one ones oneself who whom whose which what "
    "whoever whichever whatever someone somebody something anyone anybody anything everyone everybody everything "
    "none nobody nothing",
    "preposition": "about above across after against along amid among around as at before behind below beneath beside "
    "besides between beyond by despite down during except for from in inside into like near of off on onto out "
    "outside over past per since through throughout to toward towards under until unto up upon via with within "
    "without",
    "conjunction": "and or but nor so yet if unless although though because while whereas whether than once when where "
    "whenever wherever why how however therefore thus hence",
    "auxiliary": "am is are was were be been being do does did done doing have has had having can could will would "
    "shall should may might must ought need dare not cannot n't ain't aren't can't couldn't didn't doesn't don't "
    "hadn't hasn't haven't isn't mustn't shouldn't wasn't weren't won't wouldn't i'm you're we're they're it's he's "
    "she's that's there's i've you've we've they've i'll you'll he'll she'll we'll they'll i'd you'd he'd she'd "
    "we'd they'd let's",
    "adverb": "very too also just only even still already almost always never often sometimes usually rather quite "
    "again ever here there now then indeed else more most less least much many few several enough instead perhaps "
    "maybe yes",
}
FUNCTION_WORDS = frozenset(word for words in _CLOSED.values() for word in words.split())


def content_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of every content word of an English text, in characters, in order.

    A word is a run of letters, with inner hyphens or apostrophes, or a number. Capitals decide nothing, except that a
    listed word of several letters in capitals only, such as an abbreviation, counts as a name.
    """
    return [match.span() for match in _WORD.finditer(text) if _is_content(match.group())]


def _is_content(word: str) -> bool:
    plain = word.replace("’", "'").removesuffix("'s")
    if len(plain) > 1 and plain.isupper() and plain.isalpha():
        return True
    return plain.lower() not in FUNCTION_WORDS and word.replace("’", "'").lower() not in FUNCTION_WORDS
