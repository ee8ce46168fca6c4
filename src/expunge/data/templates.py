# SPDX-License-Identifier: Apache-2.0
"""Prompt templates: the text around a question, and what stands between prompt and answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from expunge.data.examples import Example, Turn
from expunge.errors import InputDataError, RecipeError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
# The space belongs to the separator, not to the prompt: tokenizers put it at the start of the answer's first token.
_PATTERNS = {
    "raw": ("{q}", ""),
    "question": ("Question: {q}\nAnswer:", " "),
    "llama2": ("[INST] {q} [/INST]", " "),
    # As TOFU's own code has them: no space before the answer, and a labelled tag in front of it.
    "tofu_llama2": ("[INST] {q} [/INST]", ""),
    "tofu_phi": ("Question: {q}\n", "Answer: "),
}
NAMES = ("auto", *_PATTERNS, CHAT)
# Some chat templates print today's date; a fixed one keeps token ids the same from day to day.
_DATE = "26 Jul 2024"


class Rendered(NamedTuple):
    """The text before the answer, what joins them, and whether the tokenizer still has to add its special tokens."""

    prompt: str
    separator: str
    special_tokens: bool


@dataclass(frozen=True, slots=True)
class Template:
    """What is put around a question.

    Only examples of kind `question` take it: `completion` and `text` stay as they are, `chat` takes the tokenizer's
    chat template where that is the template and role-labelled lines otherwise.

    Attributes:
        name: `raw`, `question`, `llama2`, `tofu_llama2`, `tofu_phi` or `chat` (`auto` has been resolved).
        pattern: the text with `{q}` for the question, or the source of the chat template.
        separator: stands between prompt and answer.
    """

    name: str
    pattern: str
    separator: str

    @property
    def template_id(self) -> str:
        """Name and short digest of the text, so that records made under another template are not mixed up with it."""
        text = f"{self.pattern}\0{self.separator}".encode()
        return f"{self.name}-{hashlib.sha256(text).hexdigest()[:8]}"

    def render(self, example: Example, tokenizer: PreTrainedTokenizerBase, *, prompt: str | None = None) -> Rendered:
        """Return the text before the answer of `example`; `prompt` takes the place of its question, if given.

        Raises:
            InputDataError: if the chat template refuses the turns.
        """
        text = example.prompt if prompt is None else prompt
        if example.kind == "text":
            return Rendered("", "", special_tokens=True)
        if example.kind == "completion":
            return Rendered(text, "", special_tokens=True)
        turns = _with_question(example.turns, text) if example.kind == "chat" else (Turn("user", text),)
        if self.name == CHAT:
            return Rendered(_apply(tokenizer, turns, example.id), self.separator, special_tokens=False)
        if example.kind == "chat":
            lines = [f"{turn.role.capitalize()}: {turn.content}" for turn in turns]
            return Rendered("\n".join([*lines, "Assistant:"]), " ", special_tokens=True)
        return Rendered(self.pattern.replace("{q}", text), self.separator, special_tokens=True)


def resolve_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the template of that name; `auto` is the tokenizer's chat template if it has one, else `question`.

    Raises:
        RecipeError: if there is no such template, or `chat` is asked of a tokenizer without one.
    """
    if name not in NAMES:
        raise RecipeError("unknown template", field="data.template", value=name, remedy=nearest(name, NAMES))
    has_chat = tokenizer.chat_template is not None
    if name == "auto":
        name = CHAT if has_chat else "question"
    if name != CHAT:
        return Template(name, *_PATTERNS[name])
    if not has_chat:
        remedy = "Use --set data.template=question, or save the tokenizer with its chat template"
        raise RecipeError("the tokenizer has no chat template", field="data.template", value=name, remedy=remedy)
    return Template(CHAT, tokenizer.get_chat_template(), _chat_separator(tokenizer))


def _with_question(turns: Sequence[Turn], text: str) -> tuple[Turn, ...]:
    """Return the turns with the last user turn saying `text`."""
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:last], Turn("user", text), *turns[last + 1 :])


def _apply(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], where: str, *, ask: bool = True) -> str:
    """Return the turns under the chat template; `ask` opens the assistant's turn at the end."""
    from jinja2.exceptions import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask, date_string=_DATE
        )
    except TemplateError as error:
        remedy = "Check the roles and their order, or use --set data.template=question"
        problem = f"the chat template refuses example {where!r}: {error}"
        raise InputDataError(problem, field="data.template", remedy=remedy) from error
    return text


def _chat_separator(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the white space the chat template itself puts between an opened assistant turn and what it says."""
    turns = (Turn("user", "question"), Turn("assistant", "answer"))
    opened = _apply(tokenizer, turns[:1], "probe")
    closed = _apply(tokenizer, turns, "probe", ask=False)
    gap = closed.removeprefix(opened).partition("answer")[0] if closed.startswith(opened) else ""
    return gap if gap.isspace() else ""
