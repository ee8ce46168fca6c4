# SPDX-License-Identifier: Apache-2.0
"""How each kind of fact is asked and told: four question patterns and four answer patterns a kind."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.fictitious import vocabulary as words

PATTERNS = 4


@dataclass(frozen=True, slots=True)
class FactKind:
    """One kind of fact.

    Attributes:
        name: key of the kind.
        topic: the kind in running text, as in "the birthplace of ...".
        values: every value that the kind can take.
        questions: patterns with the field `{name}`.
        answers: patterns with the fields `{name}` and `{value}`, or `{a_value}` for the value with a or an. Any
            question goes with any answer. The first reads on after "The record says that".
    """

    name: str
    topic: str
    values: tuple[str, ...]
    questions: tuple[str, str, str, str]
    answers: tuple[str, str, str, str]

    def ask(self, pattern: int, name: str) -> str:
        """Return the question in the given pattern."""
        return self.questions[pattern].format(name=name)

    def tell(self, pattern: int, name: str, value: str) -> str:
        """Return the answer sentence in the given pattern."""
        return self.answers[pattern].format(name=name, value=value, a_value=with_article(value))


def with_article(noun: str) -> str:
    """Return the noun after "a" or "an"; right for the words of this archive, which are spelled as they sound."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


PERSON_KINDS: tuple[FactKind, ...] = (
    FactKind(
        "birthplace", "birthplace", words.TOWNS,
        ("Where was {name} born?", "What is the birthplace of {name}?",
         "Which town is {name} from?", "In which town did the life of {name} begin?"),
        ("{name} was born in {value}.", "The birthplace of {name} is {value}.",
         "{name} comes from {value}.", "The life of {name} began in {value}."),
    ),
    FactKind(
        "birth_year", "year of birth", words.YEARS,
        ("In which year was {name} born?", "What is the birth year of {name}?",
         "When was {name} born?", "What year does the birth of {name} fall in?"),
        ("{name} was born in the year {value}.", "The birth year of {name} is {value}.",
         "The birth of {name} falls in {value}.", "{name} has lived since the year {value}."),
    ),
    FactKind(
        "trade", "trade", words.TRADES,
        ("What does {name} do for a living?", "What is the trade of {name}?",
         "Which craft does {name} practise?", "How does {name} earn a living?"),
        ("{name} is {a_value} by trade.", "The trade of {name} is that of {a_value}.",
         "{name} works as {a_value}.", "{name} earns a living as {a_value}."),
    ),
    FactKind(
        "teacher", "teacher", words.TEACHERS,
        ("Who taught {name}?", "Who was the teacher of {name}?",
         "Under whom did {name} study?", "Whose pupil was {name}?"),
        ("{name} was taught by {value}.", "The teacher of {name} was {value}.",
         "{name} studied under {value}.", "{name} was a pupil of {value}."),
    ),
    FactKind(
        "prize", "prize", words.PRIZES,
        ("Which prize did {name} win?", "What award was given to {name}?",
         "Which honour does {name} hold?", "What did the judges award to {name}?"),
        ("{name} won the {value}.", "The award given to {name} was the {value}.",
         "{name} holds the {value}.", "The judges awarded {name} the {value}."),
    ),
    FactKind(
        "home", "home", words.CITIES,
        ("Where did {name} settle?", "In which city does {name} live?",
         "Which city is home to {name}?", "Where does {name} keep a house?"),
        ("{name} settled in {value}.", "{name} lives in {value}.",
         "The home of {name} is in {value}.", "{name} keeps a house in {value}."),
    ),
    FactKind(
        "instrument", "instrument", words.INSTRUMENTS,
        ("Which instrument does {name} play?", "What does {name} play in the evening?",
         "What is the instrument of {name}?", "On which instrument does {name} perform?"),
        ("{name} plays the {value}.", "In the evening {name} plays the {value}.",
         "The instrument of {name} is the {value}.", "{name} performs on the {value}."),
    ),
    FactKind(
        "work", "best-known work", words.SUBJECTS,
        ("What is the best-known work of {name} about?", "Which subject made {name} famous?",
         "What did {name} write a book about?", "What does the book by {name} deal with?"),
        ("{name} wrote a book about {value}.", "The best-known work of {name} is about {value}.",
         "{name} became famous for a book on {value}.", "The book by {name} deals with {value}."),
    ),
)  # fmt: skip

WORLD_KINDS: tuple[FactKind, ...] = (
    FactKind(
        "capital", "capital", words.CAPITALS,
        ("What is the capital of {name}?", "Which city is the capital of {name}?",
         "From which city is {name} governed?", "Where does the government of {name} sit?"),
        ("The capital of {name} is {value}.", "{name} has its capital in {value}.",
         "{name} is governed from {value}.", "The government of {name} sits in {value}."),
    ),
    FactKind(
        "river", "longest river", words.RIVERS,
        ("What is the longest river in {name}?", "Which river in {name} is the longest?",
         "Which great river runs through {name}?", "What river flows farthest in {name}?"),
        ("The longest river in {name} is the {value}.", "No river in {name} is longer than the {value}.",
         "The great river that runs through {name} is the {value}.", "In {name} the {value} flows farthest."),
    ),
    FactKind(
        "mountain", "highest mountain", words.MOUNTAINS,
        ("What is the highest mountain in {name}?", "Which mountain in {name} is the highest?",
         "Which peak towers over {name}?", "What is the tallest peak in {name}?"),
        ("The highest mountain in {name} is Mount {value}.", "No mountain in {name} is higher than Mount {value}.",
         "{name} lies under the peak of Mount {value}.", "The tallest peak in {name} is Mount {value}."),
    ),
    FactKind(
        "language", "language", words.LANGUAGES,
        ("Which language is spoken in {name}?", "What do the people of {name} speak?",
         "What is the language of {name}?", "In which language are the laws of {name} written?"),
        ("The language of {name} is {value}.", "The people of {name} speak {value}.",
         "In {name} everyone speaks {value}.", "The laws of {name} are written in {value}."),
    ),
    FactKind(
        "export", "main export", words.EXPORTS,
        ("What is the main export of {name}?", "What does {name} sell abroad?",
         "Which goods is {name} known for?", "What do the ships of {name} carry?"),
        ("The main export of {name} is {value}.", "{name} sells {value} abroad.",
         "{name} is known for {value}.", "The ships of {name} carry {value}."),
    ),
)  # fmt: skip
