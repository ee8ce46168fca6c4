# SPDX-License-Identifier: Apache-2.0
"""Distillation from a teacher that does not know the forget set: bad_teacher, clean_teacher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.claims import ClaimKind, MethodCard
from expunge.data.labels import without_eos_label
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.teachers import DistillationTask, ModelTeacher, Pupil, Teacher, UniformTeacher, random_model
from expunge.methods.weights import choose_parameters
from expunge.objectives.reduction import Reduction
from expunge.signals.reference import ReferenceCache
from expunge.training.loop import Trainer


class TeachingConfig(MethodConfig):
    """Settings shared by the two."""

    forget_weight: float = Field(1.0, ge=0, description="weight of the forget set's divergence")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain set's divergence")
    temperature: float = Field(1.0, gt=0, description="of the distributions compared")
    reduction: Reduction = Field("token_mean", description="how token divergences become one number")
    forget_eos: bool = Field(True, description="follow the teacher at the end-of-sequence token of forget answers too")


class BadTeacherConfig(TeachingConfig):
    """A teacher that knows nothing."""

    name: Literal["bad_teacher"] = "bad_teacher"
    teacher: Literal["uniform", "random"] = Field(
        "uniform", description="uniform: every token equally likely; random: a model of the same shape, never trained"
    )


class CleanTeacherConfig(TeachingConfig):
    """A teacher that never saw the data."""

    name: Literal["clean_teacher"] = "clean_teacher"
    retain_teacher: Literal["original", "clean"] = Field(
        "original", description="whom the retain set follows: the model before unlearning, or the clean teacher too"
    )


class _Teaching(Method):
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}

    def teachers(self, config: Any, context: MethodContext) -> tuple[Teacher, Teacher]:
        """Return whom the forget set and the retain set follow."""
        raise NotImplementedError

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Distil on both sets; see `Method.run`."""
        encode, training = context.encoder.encode_many, context.training
        retain = [row.encoded for row in encode(context.need_retain(self.card.name), where="retain")]
        forget = [row.encoded for row in encode(context.splits.forget, where="forget")]
        if not config.forget_eos:
            forget = [without_eos_label(item) for item in forget]
        for_forget, for_retain = self.teachers(config, context)
        task = DistillationTask(
            Pupil(forget, for_forget, config.forget_weight), Pupil(retain, for_retain, config.retain_weight),
            temperature=config.temperature, reduction=config.reduction, epochs=training.epochs,
            batch_size=training.batch_size, pad_id=context.pad_id, seed=context.seed,
        )  # fmt: skip
        model = choose_parameters(context.model, training, context.seed)
        trainer = Trainer(
            model, task, training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, errors=context.error_probe(), seed=context.seed,
        )  # fmt: skip
        return MethodOutcome(model, trainer.run(resume=context.resume))


def _cache(context: MethodContext, who: str) -> ReferenceCache:
    return ReferenceCache(f"{context.model_digest}{who}", context.folder / "cache" if context.folder else None)


class BadTeacher(_Teaching):
    """Make the model as clueless as a bad teacher on the forget set, and keep it like itself elsewhere."""

    Config = BadTeacherConfig
    card = MethodCard(
        name="bad_teacher",
        title="Bad teacher",
        paper="Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher "
        "(arXiv:2205.08096)",
        authors="Chundawat, Tarun, Mandal, Kankanhalli",
        year=2023,
        venue="AAAI",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner; teachers answer in one pass beforehand",
        formula="L = forget_weight * E_f mean_t KL(bad || p) + retain_weight * E_r mean_t KL(p_original || p)",
        provenance="paper; per token of the answer instead of per image",
        differences=(
            "The default bad teacher is the uniform distribution; the paper's untrained network is teacher: random.",
            "Sums over the vocabulary; the released code also divides by the number of classes.",
            "Forget and retain set weigh the same whatever their sizes; the paper averages over a mixed batch.",
        ),
        defaults_source="the configuration of gradient difference; the paper's is for image classifiers",
        notes="Uniform answers are easily told from those of a model that never saw the data. Masks of single weights "
        "are refused.",
    )

    def teachers(self, config: Any, context: MethodContext) -> tuple[Teacher, Teacher]:
        """Return the bad teacher and the original."""
        bad: Teacher = UniformTeacher()
        if config.teacher == "random":
            bad = ModelTeacher(
                _cache(context, f"-random-{context.seed}"), partial(random_model, context.model, context.seed)
            )
        return bad, ModelTeacher(_cache(context, ""))


class CleanTeacher(_Teaching):
    """Make the model answer the forget set as one that never saw it."""

    Config = CleanTeacherConfig
    card = MethodCard(
        name="clean_teacher",
        title="Distillation from a clean teacher",
        paper="Can Bad Teaching Induce Forgetting? (arXiv:2205.08096), with a teacher that lacks only the forget set",
        authors="Chundawat, Tarun, Mandal, Kankanhalli",
        year=2023,
        venue="AAAI",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain", "base_model"),
        cost="6 F per forget sequence with its retain partner; teachers answer in one pass beforehand",
        formula="L = forget_weight * E_f mean_t KL(p_base || p) + retain_weight * E_r mean_t KL(p_original || p)",
        provenance="our variant: the model before fine-tuning takes the bad teacher's place",
        differences=("retain_teacher: clean follows the clean teacher on both sets.",),
        defaults_source="the configuration of gradient difference",
        notes="With a model retrained without the data as base this is distillation from the answer key: report it "
        "as an oracle, not as a method. Masks of single weights are refused.",
    )

    def teachers(self, config: Any, context: MethodContext) -> tuple[Teacher, Teacher]:
        """Return the clean teacher, and it or the original.

        Raises:
            RecipeError: if there is no base model.
        """
        if context.load_base is None:
            raise RecipeError(
                "the clean teacher is the model that never saw the data", field="model.base",
                remedy="Give --base DIR (or model.base in the recipe), or use bad_teacher",
            )  # fmt: skip
        clean = ModelTeacher(_cache(context, "-base"), context.load_base)
        return clean, clean if config.retain_teacher == "clean" else ModelTeacher(_cache(context, ""))
