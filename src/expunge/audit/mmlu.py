# SPDX-License-Identifier: Apache-2.0
"""The 57 subjects of MMLU and the four groups they are reported in.

Source: Hendrycks et al., Measuring Massive Multitask Language Understanding, 2021, appendix B; groups as the task
`mmlu` of the lm-evaluation-harness rolls them up.
"""

from __future__ import annotations

from collections.abc import Mapping

_STEM = (
    "abstract algebra", "anatomy", "astronomy", "college biology", "college chemistry", "college computer science",
    "college mathematics", "college physics", "computer security", "conceptual physics", "electrical engineering",
    "elementary mathematics", "high school biology", "high school chemistry", "high school computer science",
    "high school mathematics", "high school physics", "high school statistics", "machine learning",
)  # fmt: skip
_HUMANITIES = (
    "formal logic", "high school european history", "high school us history", "high school world history",
    "international law", "jurisprudence", "logical fallacies", "moral disputes", "moral scenarios", "philosophy",
    "prehistory", "professional law", "world religions",
)  # fmt: skip
_SOCIAL_SCIENCES = (
    "econometrics", "high school geography", "high school government and politics", "high school macroeconomics",
    "high school microeconomics", "high school psychology", "human sexuality", "professional psychology",
    "public relations", "security studies", "sociology", "us foreign policy",
)  # fmt: skip
_OTHER = (
    "business ethics", "clinical knowledge", "college medicine", "global facts", "human aging", "management",
    "marketing", "medical genetics", "miscellaneous", "nutrition", "professional accounting",
    "professional medicine", "virology",
)  # fmt: skip

MMLU_GROUPS: Mapping[str, tuple[str, ...]] = {
    "stem": _STEM, "humanities": _HUMANITIES, "social_sciences": _SOCIAL_SCIENCES, "other": _OTHER,
}  # fmt: skip
MMLU_SUBJECTS: frozenset[str] = frozenset(subject for group in MMLU_GROUPS.values() for subject in group)
