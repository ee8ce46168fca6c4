# SPDX-License-Identifier: Apache-2.0
"""CUT, the forerunner of representation misdirection: forget states are shifted from an expert's towards a novice's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded, Encoder
from expunge.errors import RecipeError, nearest
from expunge.methods.base import MethodContext
from expunge.methods.reading import Coefficient, Plan, choose_coefficient
from expunge.methods.representation import RepresentationConfig, RepresentationMethod, Sets, Steering
from expunge.methods.topics import Topics
from expunge.objectives.representation import cut_target, expert_direction
from expunge.signals.hidden import over_batches
from expunge.training.task import Row

NOVICE = "The following was written by a novice in {keyword}, who often gets things wrong."
EXPERT = "The following was written by one of the world's foremost experts in {keyword}."


class CUTConfig(RepresentationConfig):
    """Shift from expert to novice."""

    name: Literal["cut"] = "cut"
    coefficient: float | Literal["auto"] = Field(
        "auto", description="length c of the shift; auto: a multiple of the states' median length"
    )
    multiple: float = Field(6.0, gt=0, description="auto: c over the median length of a forget state at the block")
    keywords: dict[str, tuple[str, ...]] | None = Field(
        None, description="keywords per topic (`all` where topics is single); null: the subjects of its examples"
    )


@dataclass(frozen=True, slots=True)
class KeywordRow(Row):
    """A forget row and the keyword drawn for it."""

    keyword: str


class NoviceShift(Steering):
    """The original states plus a shift along the direction of a keyword, drawn anew each epoch."""

    reads_original: ClassVar[bool] = True

    def __init__(
        self, topics: Topics, keywords: Mapping[str, Sequence[str]], directions: Mapping[str, Tensor],
        coefficient: Coefficient, seed: int,
    ) -> None:  # fmt: skip
        self._topics, self._keywords, self._directions = topics, keywords, directions
        self._coefficient, self._seed = coefficient, seed

    def rows(self, item: Encoded, index: int, epoch: int) -> Row:
        """Return the forget row with one of its topic's keywords."""
        known = self._keywords[self._topics.of[index]]
        drawn = int(np.random.default_rng([self._seed, 86028121, epoch, index]).integers(len(known)))
        return KeywordRow(item, "forget", index, known[drawn])

    def target(self, row: Row, original_ND: Tensor | None) -> Tensor:
        """Return the shifted original states, [N, D]."""
        assert isinstance(row, KeywordRow), "made by rows()"
        assert original_ND is not None, "reads_original"
        return cut_target(original_ND, self._directions[row.keyword], self._coefficient.value)

    def notes(self) -> dict[str, Any]:
        """Return the keywords' number and the shift's length."""
        return {**self._coefficient.notes(), "keywords": len(self._directions)}


class CUT(RepresentationMethod):
    """Shift forget states along the difference between a novice's and an expert's prompt."""

    Config = CUTConfig
    card = MethodCard(
        name="cut",
        title="Contrastive shift of states (CUT)",
        paper="The WMDP Benchmark (arXiv:2403.03218), first version",
        authors="Li et al.",
        year=2024,
        venue="arXiv preprint",
        family="representation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="forward and backward of the blocks that train only (3 of the model's by default) per forget and retain "
        "sequence; one pass up to the block read beforehand",
        formula="L = forget_weight * E_f mean_t ||h_l - (h_l^0 + c v_k)||^2 + retain_weight * "
        "E_r mean_t ||h_l - h_l^0||^2, v_k from an expert's to a novice's last state",
        provenance="the first release of the benchmark's code, before it was replaced by rmu",
        differences=(
            "The two prompts are our own wording; the release's are not repeated.",
            "A keyword is drawn per forget sequence and epoch, in the release per batch.",
            "Keywords default to the subjects of the forget set, the length of the shift to a multiple of the "
            "states' own; the release's 20 is about 6 times theirs.",
            "Tensors, means, topics, stored states and the weight of the retain term as in rmu; the release's weight "
            "is 5000.",
        ),
        defaults_source="first release: learning rate 5e-5, batch 4, 80 steps",
        notes="Superseded by rmu, which its authors found simpler and about as good.",
    )
    training_defaults: ClassVar[Mapping[str, Any]] = {**RepresentationMethod.training_defaults, "max_steps": 80}

    def steering(self, config: Any, context: MethodContext, sets: Sets, plan: Plan) -> Steering:
        """Return the shifted targets."""
        subjects = [example.subject for example in context.splits.forget]
        keywords = _keywords(config, sets.topics, subjects)
        wanted = dict.fromkeys(word for words in keywords.values() for word in words)
        directions = {
            word: _direction(context.model, context.encoder, word, plan.layer, context.pad_id) for word in wanted
        }
        coefficient = choose_coefficient(plan, config.coefficient, config.multiple)
        return NoviceShift(sets.topics, keywords, directions, coefficient, context.seed)


def _keywords(config: CUTConfig, topics: Topics, subjects: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the keywords of every topic.

    Raises:
        RecipeError: if a topic has none.
    """
    given = config.keywords
    if given is None:
        if config.topics == "single":
            given = {"all": tuple(dict.fromkeys(subject for subject in subjects if subject))}
        else:
            by_subject = config.topics if isinstance(config.topics, dict) else {name: name for name in subjects}
            given = {topic: tuple(s for s in dict.fromkeys(subjects) if by_subject[s] == topic)
                     for topic in topics.names()}  # fmt: skip
    for topic in topics.names():
        if not given.get(topic):
            raise RecipeError(
                "this topic has no keywords", field="method.keywords", value=topic, remedy=nearest(topic, given)
            )
    return {topic: given[topic] for topic in topics.names()}


def _direction(model: nn.Module, encoder: Encoder, keyword: str, layer: int, pad_id: int) -> Tensor:
    """Return the direction from the expert's to the novice's last state at a block, [D]."""
    states = []
    for prompt in (NOVICE, EXPERT):
        ids = tuple(encoder.tokenizer(prompt.format(keyword=keyword))["input_ids"])
        item = Encoded(ids, ids, False)
        [(_, found)] = over_batches(model, [item], layers=[layer], pad_id=pad_id)
        states.append(found[layer][0, -1].float().cpu())
    return expert_direction(*states)
