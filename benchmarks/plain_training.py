# SPDX-License-Identifier: Apache-2.0
"""The baseline for training: each loss as one would write it with a plain transformers `Trainer`.

A second, frozen copy of the model gives the reference. Forget and retain rows are padded on the right and forwarded
separately, with the model's own call and all its logits. Nothing is slower than it need be written this way: rows are
tokenised once, the frozen copy runs without gradients, cross-entropy is taken over flat logits, parameters that do not
train take no gradients, and the optimiser is the `Trainer`'s own default, the fused AdamW.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.settings import KL, NPO, RMU, TRAINING, Job, Moment, TrainingLog

IGNORED = -100
Batch = Mapping[str, Tensor]


def tokenised(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> dict[str, Tensor]:
    """Return ids and labels of one pair: prompt, answer, end of sequence; labels on the last two."""
    prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    said = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + said
    return {"input_ids": torch.tensor(prompt + said), "labels": torch.tensor(labels)}


def collated(rows: Sequence[Mapping[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Return rows padded on the right."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=pad_id)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED)
    mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Pairs(Dataset[dict[str, dict[str, Tensor]]]):
    """Forget rows with their retain partners, in the order they are trained on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
        forget, retain = (
            [tokenised(tokenizer, row["question"], row["answer"]) for row in job.workload.rows(name)]
            for name in ("forget", "retain")
        )
        self._pairs = [{"forget": forget[f], "retain": retain[r]} for f, r in job.order()]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, dict[str, Tensor]]:
        return self._pairs[index]


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the time after every optimiser step."""

    def __init__(self) -> None:
        self.stamps: list[Moment] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.stamps.append(Moment.now())


class PairTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` whose loss is a forget part and a retain part."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job, folder: str) -> None:
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.seen: list[Tensor] = []
        pad_id = tokenizer.pad_token_id

        def collate(rows: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
            return {name: collated([row[name] for row in rows], pad_id) for name in ("forget", "retain")}

        super().__init__(model=model, args=_arguments(job, folder), train_dataset=Pairs(tokenizer, job),
                         data_collator=collate)  # fmt: skip

    def _get_train_sampler(self, *_args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch of pairs."""
        loss = self.parts(model, inputs["forget"], inputs["retain"])
        self.seen.append(loss.detach())
        return loss

    def parts(self, model: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Return the weighted sum of both parts."""
        raise NotImplementedError


def _arguments(job: Job, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder, per_device_train_batch_size=job.workload.sizes.batch, num_train_epochs=1,
        learning_rate=TRAINING["learning_rate"], weight_decay=TRAINING["weight_decay"],
        adam_epsilon=TRAINING["epsilon"], max_grad_norm=TRAINING["max_grad_norm"], lr_scheduler_type="constant",
        use_cpu=True,
        seed=job.workload.sizes.seed, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip


def sequence_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Return the summed cross-entropy of every row, [B]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape).sum(1)


class NPOTrainer(PairTrainer):
    """Negative preference optimisation with the likelihood of the retain set."""

    def parts(self, model: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Return -(2/beta) log sigmoid(-beta log(p/p_ref)) plus the retain loss."""
        now = sequence_nll(model, forget)
        with torch.no_grad():
            before = sequence_nll(self.reference, forget)
        loss = -(2 / NPO["beta"]) * functional.logsigmoid(NPO["beta"] * (now - before)).mean()
        kept: Tensor = model(**retain).loss
        return loss + NPO["retain_weight"] * kept


class KLTrainer(PairTrainer):
    """Gradient difference with the divergence from the original model on the retain answers."""

    def parts(self, model: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Return minus the forget loss plus KL(original || model)."""
        loss = -model(**forget).loss
        shown = {"input_ids": retain["input_ids"], "attention_mask": retain["attention_mask"]}
        answer = retain["labels"][:, 1:] != IGNORED
        with torch.no_grad():
            before = functional.log_softmax(self.reference(**shown).logits[:, :-1].float(), -1)
        now = functional.log_softmax(model(**shown).logits[:, :-1].float(), -1)
        apart = functional.kl_div(now, before, reduction="none", log_target=True).sum(-1)
        kept: Tensor = loss + KL["retain_weight"] * apart[answer].mean()
        return kept


class RMUTrainer(PairTrainer):
    """Representation misdirection: both models run whole, hooks read one block."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job, folder: str) -> None:
        self.layer, self.target = job.workload.sizes.read, job.control()
        moving = tuple(f"layers.{layer}.mlp.down_proj.weight" for layer in job.trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(moving))
        super().__init__(model, tokenizer, job, folder)

    def parts(self, model: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Return the two mean squared distances."""
        sent = ((self._states(model, forget) - self.target) ** 2).mean(-1)
        with torch.no_grad():
            before = self._states(self.reference, retain)
        kept = ((self._states(model, retain) - before) ** 2).mean(-1)
        return _per_row(sent, forget) + RMU["retain_weight"] * _per_row(kept, retain)

    def _states(self, model: nn.Module, batch: Batch) -> Tensor:
        found: list[Tensor] = []
        block = model.get_submodule(f"model.layers.{self.layer}")
        handle = block.register_forward_hook(lambda _block, _args, output: found.append(output))
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        handle.remove()
        return found[0]


def _per_row(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean over rows of the mean over real tokens."""
    mask = batch["attention_mask"]
    return ((values * mask).sum(1) / mask.sum(1)).mean()


TRAINERS: Mapping[str, type[PairTrainer]] = {"npo": NPOTrainer, "grad_diff_kl": KLTrainer, "rmu": RMUTrainer}


def train(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TrainingLog:
    """Train and return the losses and the times of the steps."""
    clock, started = _Clock(), Moment.now()
    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[job.method](model, tokenizer, job, folder)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return TrainingLog([float(loss) for loss in trainer.seen], clock.stamps, started, Moment.now())
