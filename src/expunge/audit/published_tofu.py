# SPDX-License-Identifier: Apache-2.0
"""Logs that the authors of TOFU wrote: mean losses, ROUGE and generations of every item, but no tokens.

A log has one section per evaluated file. In each, `avg_gt_loss` is the loss of the answer, `avg_paraphrased_loss` that
of the right answer in the pass that also scored the wrong ones (the paraphrase on the forget and retain sets, the
answer itself on the other two), `average_perturb_loss` those of the wrong answers: nats per token, end-of-sequence
included.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

from expunge.audit.protocol import Protocol
from expunge.audit.published_values import SOURCE, by_index, finite, refuse, text
from expunge.audit.records import GeneratedItem, Records, ScoredItem, Summary

TOFU_LOG = Protocol(
    "tofu", SOURCE, {"forget": "forget", "retain": "retain", "real_authors": "options", "world_facts": "options"}
)
AUTHOR_SIZE = 20
"""Questions about one author stand together in the files of TOFU."""

#: The first word that a section's name contains tells the set.
_NAMES = (("forget", "forget"), ("author", "real_authors"), ("world", "world_facts"), ("retain", "retain"))
#: Loss per token; else the summed loss and the number of tokens.
_ANSWER = ("avg_gt_loss", "gt_loss", "num_token_gt")
_RIGHT = ("avg_paraphrased_loss", "paraphrased_loss", "num_token_paraphrased")
_WRONG = ("average_perturb_loss", "perturb_loss", "num_token_perturb")
_SAID = "generated_text"
#: What a log states itself, by our name for it.
_STATED = {"rouge_l": "rougeL_recall", "rouge_1": "rouge1_recall"}


def author(position: int) -> str:
    """Return the cluster of a question from its position, from 0, in a file about authors."""
    return f"author-{position // AUTHOR_SIZE + 1}"


def is_section(value: Any) -> bool:
    """Return whether a value of a JSON file is one section of such a log."""
    return isinstance(value, Mapping) and any(key in value for fields in (_ANSWER, _RIGHT, _WRONG) for key in fields)


def set_of(section: str) -> str | None:
    """Return the evaluated set that a section is about, None if its name does not tell."""
    stem = PurePath(section).stem.casefold()
    named = next((name for word, name in _NAMES if word in stem), None)
    return named or ("retain" if stem.startswith("eval_log") else None)


def tofu_records(sections: Mapping[str, Mapping[str, Any]], *, source: str) -> Records:
    """Return the records of a log.

    Args:
        sections: the log's sections by name, such as `eval_log_forget.json`.
        source: where the log was read, kept with the records and named in errors.

    Raises:
        InputDataError: if two sections are about one set, or a value is not a finite number; it names the item.
    """
    found: dict[str, _Section] = {}
    notes = []
    for name, values in sections.items():
        which = set_of(name)
        if which is None:
            notes.append(f"section {name!r} is not one of TOFU's and was left out")
        elif which in found:
            raise refuse(f"sections {found[which].name!r} and {name!r} are both about the {which} set", where=source)
        else:
            found[which] = _Section(name, which, values, f"{source}: {name}")
    absent = {name: f"the log has no section about {name}" for name in TOFU_LOG.roles if name not in found}
    for part in found.values():
        absent |= part.absent()
    stated = {key: value for part in found.values() for key, value in part.stated().items()}
    meta: dict[str, Any] = {
        "source": source, "format": "tofu", "protocol": TOFU_LOG.to_dict(), "absent": absent, "published": stated,
        "counts": {name: part.size() for name, part in found.items()}, "notes": notes,
    }  # fmt: skip
    scored = [item for part in found.values() for item in part.scored()]
    return Records(scored, [item for part in found.values() for item in part.generated()], meta)


@dataclass(frozen=True, slots=True)
class _Section:
    """One section: its name, the set it is about, its values, and how errors call it."""

    name: str
    set: str
    values: Mapping[str, Any]
    where: str

    def size(self) -> int:
        """Return the number of items: those of the longest field."""
        kept = [key for fields in (_ANSWER, _RIGHT, _WRONG) for key in fields if key in self.values] + [_SAID]
        return max((len(self._field(key)) for key in kept if key in self.values), default=0)

    def absent(self) -> dict[str, str]:
        """Return why a variant has no items, by `set/variant`."""
        right = "answer_again" if TOFU_LOG.roles[self.set] == "options" else "paraphrase"
        needed = {"answer": _ANSWER, right: _RIGHT, "perturbed": _WRONG}
        out = {
            f"{self.set}/{variant}": f"section {self.name} of the log has no {fields[0]}"
            for variant, fields in needed.items() if not self._summaries(fields)
        }  # fmt: skip
        if not self.values.get(_SAID):
            out[f"{self.set}/question"] = f"section {self.name} of the log has no {_SAID}"
        return out

    def stated(self) -> dict[str, dict[str, Any]]:
        """Return the means of the numbers per item that the log states itself, by our name for the metric."""
        out = {}
        for ours, theirs in _STATED.items():
            values = [finite(value, where=f"{self.where}: {theirs}") for value in self._field(theirs).values()]
            if values:
                out[f"{self.set}.{ours}"] = {"value": fmean(values), "n": len(values), "file": self.name}
        return out

    def scored(self) -> Iterator[ScoredItem]:
        """Yield every scored answer, in the log's order."""
        sizes = {item: len(zlib.compress(target.encode())) for item, (_, target) in self._said().items()}
        options = TOFU_LOG.roles[self.set] == "options"
        for item, kept in self._summaries(_ANSWER).items():
            yield self._item(item, "answer", 0, kept[0], sizes.get(item, 0))
        for item, kept in self._summaries(_RIGHT).items():
            # The same text as the answer where there is no paraphrase; another text otherwise, which no log holds.
            size = sizes.get(item, 0) if options else 0
            yield self._item(item, "answer_again" if options else "paraphrase", 0, kept[0], size)
        for item, kept in self._summaries(_WRONG).items():
            for number, one in enumerate(kept):
                yield self._item(item, "perturbed", number, one, 0)

    def generated(self) -> Iterator[GeneratedItem]:
        """Yield every generation, in the log's order."""
        for item, (said, target) in self._said().items():
            yield GeneratedItem(
                set=self.set, id=self._id(item), subject=self._subject(item), prompt_variant="question",
                prediction=said, target=target, n_tokens=None, finished=None,
            )  # fmt: skip

    def _item(self, item: str, variant: str, number: int, summary: Summary, zlib_bytes: int) -> ScoredItem:
        return ScoredItem(
            set=self.set, id=self._id(item), subject=self._subject(item), variant=variant, variant_index=number,
            ids_hash="", logp=(), correct=(), mu=(), sigma2=(), ends_with_eos=True, zlib_bytes=zlib_bytes,
            summary=summary,
        )  # fmt: skip

    def _id(self, item: str) -> str:
        return f"{self.set}-{int(item) + 1}" if item.isdigit() else item

    def _subject(self, item: str) -> str:
        """Return the author; the questions about the real world have none."""
        about_authors = TOFU_LOG.roles[self.set] != "options" and item.isdigit()
        return author(int(item)) if about_authors else ""

    def _field(self, key: str) -> dict[str, Any]:
        values = self.values.get(key)
        return {} if values is None else by_index(values, where=f"{self.where}: {key}")

    def _summaries(self, fields: tuple[str, str, str]) -> dict[str, list[Summary]]:
        """Return, by item, one summary per answer: from the losses per token, else from sums and counts."""
        means, sums, counts = (self._field(key) for key in fields)
        out = {}
        for item in means or sums:
            sizes = _numbers(counts[item], f"{self.where}: {fields[2]}, item {item}") if item in counts else []
            where = f"{self.where}: {fields[0 if means else 1]}, item {item}"
            losses = _numbers((means or sums)[item], where)
            if sizes and len(sizes) != len(losses):
                raise refuse(f"{len(losses)} losses but {len(sizes)} token counts", where=where)
            if not means:
                if not sizes or min(sizes) <= 0:
                    raise refuse("a summed loss without its number of tokens", where=where)
                losses = [loss / size for loss, size in zip(losses, sizes, strict=True)]
            kept = [int(size) for size in sizes] if sizes else [None] * len(losses)
            out[item] = [Summary(mean_logp=-a, n_tokens=n) for a, n in zip(losses, kept, strict=True)]
        return out

    def _said(self) -> dict[str, tuple[str, str]]:
        """Return, by item, what was generated and the true answer."""
        out = {}
        for item, entry in self._field(_SAID).items():
            where = f"{self.where}: {_SAID}, item {item}"
            if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
                raise refuse("not a list of prompt, generation and true answer", where=where)
            out[item] = (text(entry[1], where=where), text(entry[2], where=where))
        return out


def _numbers(value: Any, where: str) -> list[float]:
    """Return one number or a list of them as a list."""
    return [finite(one, where=where) for one in (value if isinstance(value, list) else [value])]
