# SPDX-License-Identifier: Apache-2.0
"""WMDP and MMLU as multiple choice, 0-shot, and harmless stand-ins of the same form.

A folder is searched for every set it holds: `wmdp` (biology, chemistry, cybersecurity), `mmlu` (57 subjects), and the
stand-ins `birthdays` (years of birth of invented people), `years` (years of events) and `mmlu_categories`. Files have
the columns question, choices and answer, optionally subject.

Source: Li et al., WMDP, 2024; Hendrycks et al., MMLU, 2021; the prompt is that of the lm-evaluation-harness. The
stand-ins are those of Deeb and Roger, "Do Unlearning Methods Remove Information from Language Model Weights?", 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from expunge.audit.config import Compat
from expunge.audit.mmlu import MMLU_SUBJECTS
from expunge.audit.protocol import Protocol, SetRole
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.questions import LETTER_TEMPLATE, Question, QuestionSet, load_questions
from expunge.errors import InputDataError

_TOPICS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
_SUFFIXES = (".jsonl", ".json", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

#: What each set is to an audit: `hazard` should come to be failed, `questions` should still be answered.
ROLES: Mapping[str, SetRole] = {
    "wmdp": "hazard", "mmlu": "questions", "birthdays": "hazard", "years": "hazard", "mmlu_categories": "questions",
}  # fmt: skip
#: Folder, file names and topic of the stand-ins; the topic is "" where the file names give it.
_STAND_INS: Mapping[str, tuple[str, str, str]] = {
    "birthdays": ("random_bd", "split_*.jsonl", "years of birth"),
    "years": ("dates-years-trimmed", "split_*.jsonl", "years of events"),
    "mmlu_categories": ("mmlu_cats_random_trimmed", "mmlu_*.jsonl", ""),
}


@dataclass(frozen=True, slots=True)
class Wmdp:
    """Hazardous knowledge and general knowledge side by side; `all` takes every set the folder holds."""

    name: str = "wmdp"
    version: str = "1"
    title: str = "WMDP and MMLU, or stand-ins of the same form (Li et al., 2024)"
    splits: tuple[str, ...] = ("all", *ROLES)
    needs_data: bool = True

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the questions found in a folder, or of the hub ids `cais/wmdp` and `cais/mmlu` given in its place.

        `compat` changes how ties are counted, not what is asked. Prompts beyond the context lose their start, as in
        the harness; the records count them.

        Raises:
            InputDataError: if no set is there, or a file cannot be used.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        notes: list[str] = []
        wanted = tuple(ROLES) if split == "all" else (split,)
        on_hub = data_dir is not None and not data_dir.is_dir() and _HUB_ID.fullmatch(data_dir.as_posix())
        found = _from_hub(data_dir.as_posix()) if on_hub and data_dir else self._from_folder(data_dir, wanted)
        found = {name: questions for name, questions in found.items() if name in wanted and questions.questions}
        if not found:
            raise InputDataError(
                f"holds none of the sets {', '.join(wanted)}", field="--data", value=str(data_dir),
                remedy="Give the folder that holds wmdp-bio/, mmlu/, random_bd/... , or the hub id cais/wmdp",
            )  # fmt: skip
        for name, questions in found.items():
            notes += _absent(name, questions)
        protocol = Protocol(f"wmdp-{split}", self.version, {name: ROLES[name] for name in found})
        return BenchmarkData(
            sets={}, questions=found, protocol=protocol, template="raw", audit={"generate": False}, notes=tuple(notes)
        )

    def _from_folder(self, data_dir: Path | None, wanted: tuple[str, ...]) -> dict[str, QuestionSet]:
        folder = needed_dir(self, data_dir)
        readers: dict[str, Callable[[Path], QuestionSet]] = {"wmdp": load_wmdp, "mmlu": load_mmlu}
        out = {}
        for name in wanted:
            if name in readers:
                out[name] = readers[name](folder)
            else:
                out[name] = load_stand_in(folder, name)
        return out


def load_wmdp(folder: Path) -> QuestionSet:
    """Return the WMDP questions of a folder, such as `wmdp-bio/test-00000.parquet` or `wmdp_bio.jsonl`; maybe none."""
    return _set(
        question
        for short, topic in _TOPICS.items()
        for question in _read(_files(folder, (f"wmdp-{short}", f"wmdp_{short}")), f"wmdp-{short}", topic)
    )


def load_mmlu(folder: Path) -> QuestionSet:
    """Return the MMLU test questions of a folder or of `mmlu/` in it: `all/test*`, or files or folders per subject."""
    for place in (folder / "mmlu", folder):
        if whole := _files(place, ("all",)):
            return _set(_read(whole, "mmlu", ""))
        parts = {subject: _files(place, (subject.replace(" ", "_"), subject)) for subject in sorted(MMLU_SUBJECTS)}
        if any(parts.values()):
            return _set(q for subject, paths in parts.items() for q in _read(paths, f"mmlu-{subject}", subject))
    return _set(())


def load_stand_in(folder: Path, name: str) -> QuestionSet:
    """Return one of the stand-ins `birthdays`, `years` and `mmlu_categories`; no questions if it is not there.

    The subject of a question is the file it comes from (`split 3`, `law`): files are disjoint in what they ask.

    Args:
        folder: the stand-in's own folder, or the one that holds it.
        name: which.
    """
    own, pattern, topic = _STAND_INS[name]
    place = folder if folder.name == own else folder / own
    questions = [
        question
        for path in sorted(place.glob(pattern))
        for question in _read([path], f"{name}-{path.stem}", path.stem.removeprefix("mmlu_"))
    ]
    found = _set(questions)
    return replace(found, template=LETTER_TEMPLATE.replace("{subject}", topic)) if topic else found


def _from_hub(source: str) -> dict[str, QuestionSet]:
    """Return the set that a hub id names; needs the network unless it is in the cache."""
    if "mmlu" in source.lower():
        return {"mmlu": _set(load_questions(f"{source}:all[test]", name="mmlu"))}
    parts = ((short, topic, f"{source}:wmdp-{short}[test]") for short, topic in _TOPICS.items())
    return {"wmdp": _set(q for short, t, part in parts for q in load_questions(part, name=f"wmdp-{short}", subject=t))}


def _set(questions: Iterator[Question] | list[Question] | tuple[Question, ...]) -> QuestionSet:
    return QuestionSet(questions=tuple(questions), too_long="cut")


def _read(paths: list[Path], name: str, subject: str) -> Iterator[Question]:
    for number, path in enumerate(paths):
        yield from load_questions(path, name=name if number == 0 else f"{name}-{number}", subject=subject)


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the test files of the first name there is: `NAME.jsonl`, `NAME_test.jsonl` or `NAME/test*.parquet`."""
    for name in names:
        single = [folder / f"{name}{middle}{end}" for middle in ("", "_test") for end in _SUFFIXES]
        inside = sorted(path for path in (folder / name).glob("test*") if path.suffix in _SUFFIXES)
        if found := [path for path in single if path.is_file()][:1] or inside:
            return found
    return []


def _absent(name: str, questions: QuestionSet) -> list[str]:
    """Say which parts of WMDP or MMLU the files lack: the number is that of the others only."""
    whole = {"wmdp": set(_TOPICS.values()), "mmlu": set(MMLU_SUBJECTS)}.get(name, set())
    absent = sorted(whole - {question.subject for question in questions.questions})
    if not absent:
        return []
    shown = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
    return [f"{name}: {len(absent)} of {len(whole)} subjects are absent: {shown}"]


WMDP = Wmdp()
