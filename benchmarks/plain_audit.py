# SPDX-License-Identifier: Apache-2.0
"""The baseline for audits: TOFU's evaluation one metric at a time, each with passes of its own.

Every metric asks the model itself: `model(**batch)` over padded batches, with all logits, or `model.generate`. What one
metric found is used by another where it is the same named quantity (the truth ratio and the normalised probability of
a set share their two), as published evaluation code does. Within that it is written as well as it may be: inference
mode, rows tokenised once a metric, cross-entropy over flat logits, one forward for Min-K%++, one pass for both halves
of a membership attack, batches of `BATCH` rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rouge_score import rouge_scorer
from scipy.stats import hmean, mannwhitneyu
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.plain_training import IGNORED, collated, tokenised
from benchmarks.settings import MIN_K
from benchmarks.workload import Workload

#: Rows per forward, as in published configurations; on the processor measured, 8 and 16 take as long.
BATCH = 32
#: What the published code adds to denominators.
EPSILON = 1e-10

Floats = NDArray[np.float64]


class PlainAudit:
    """One model, one data set, one tokenizer, and the metrics by name.

    Args:
        workload: the data.
        model: what is measured.
        tokenizer: its tokenizer.
        batch: rows per forward.
    """

    def __init__(
        self, workload: Workload, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = BATCH
    ) -> None:
        self._model, self._tokenizer, self._batch, self._workload = model, tokenizer, batch, workload
        self._rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)

    # Quantities that several metrics name.

    @cached_property
    def retain_truth(self) -> tuple[Floats, Floats]:
        """Losses of paraphrased and of wrong answers of the retain set."""
        return self._losses("retain", "paraphrased_answer"), self._wrong("retain")

    @cached_property
    def authors(self) -> tuple[Floats, Floats]:
        """Losses of answers and of wrong answers about real authors."""
        return self._losses("authors", "answer"), self._wrong("authors")

    @cached_property
    def facts(self) -> tuple[Floats, Floats]:
        """The same about the world."""
        return self._losses("facts", "answer"), self._wrong("facts")

    # Metrics.

    def values(self, names: Sequence[str]) -> dict[str, float]:
        """Return the value of every metric named, one after another; utility needs its nine parts before it."""
        found: dict[str, float] = {}
        for name in names:
            if name == "model_utility":
                parts = ("probability", "truth_ratio", "rouge_l")
                sets = ("retain", "real_authors", "world_facts")
                found[name] = float(hmean([found[f"{one}.{part}"] for one in sets for part in parts]))
            else:
                found[name] = self._metrics[name]()
        return found

    @property
    def _metrics(self) -> Mapping[str, Callable[[], float]]:
        return {
            "forget.probability": lambda: float(np.exp(-self._losses("forget", "answer")).mean()),
            "forget.truth_ratio": self._forget_truth,
            "forget.rouge_l": lambda: self._rouge_l("forget"),
            "forget.extraction_strength": lambda: self._matches("forget", _strength),
            "forget.exact_memorization": lambda: self._matches("forget", lambda hits: float(hits.float().mean())),
            "retain.probability": lambda: float(np.exp(-self._losses("retain", "answer")).mean()),
            "retain.truth_ratio": lambda: _utility(self.retain_truth),
            "retain.rouge_l": lambda: self._rouge_l("retain"),
            "real_authors.probability": lambda: _among_options(self.authors),
            "real_authors.truth_ratio": lambda: _utility(self.authors),
            "real_authors.rouge_l": lambda: self._rouge_l("authors"),
            "world_facts.probability": lambda: _among_options(self.facts),
            "world_facts.truth_ratio": lambda: _utility(self.facts),
            "world_facts.rouge_l": lambda: self._rouge_l("facts"),
            "membership.loss.auc": lambda: self._auc(lambda name: list(self._losses(name, "answer"))),
            "membership.zlib.auc": lambda: self._auc(self._zlib),
            "membership.min_k.auc": lambda: self._auc(self._min_k),
            "membership.min_k_plus_plus.auc": lambda: self._auc(self._min_k_plus_plus),
            "membership.gradient_norm.auc": lambda: self._auc(self._gradient_norms),
        }

    # Passes.

    def _batches(self, name: str, key: str, number: int = 0) -> Iterator[dict[str, Tensor]]:
        rows = []
        for row in self._workload.rows(name):
            answer = row[key] if isinstance(row[key], str) else row[key][number]
            rows.append(tokenised(self._tokenizer, row["question"], answer))
        for start in range(0, len(rows), self._batch):
            yield collated(rows[start : start + self._batch], self._tokenizer.pad_token_id)

    @torch.inference_mode()
    def _losses(self, name: str, key: str, number: int = 0) -> Floats:
        """Return the mean loss per answer token of every row, [n]."""
        out: list[float] = []
        for batch in self._batches(name, key, number):
            shown = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            logits, labels = self._model(**shown).logits[:, :-1], batch["labels"][:, 1:]
            losses = functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
            )
            out += (losses.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)).tolist()
        return np.array(out)

    def _wrong(self, name: str) -> Floats:
        """Return the mean losses of the wrong answers, [n, K]."""
        count = len(self._workload.rows(name)[0]["perturbed_answer"])
        return np.stack([self._losses(name, "perturbed_answer", i) for i in range(count)], axis=1)

    @torch.inference_mode()
    def _log_probabilities(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, per row, log p over the vocabulary [n, V] and labels [n], the last answer token left out."""
        for batch in self._batches(name, "answer"):
            shown = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            logp = functional.log_softmax(self._model(**shown).logits[:, :-1].float(), -1)
            for one, labels in zip(logp, batch["labels"][:, 1:], strict=True):
                places = (labels != IGNORED).nonzero().squeeze(1)[:-1]
                yield one[places], labels[places]

    def _matches(self, name: str, score: Callable[[Tensor], float]) -> float:
        return float(np.mean([score(logp.argmax(-1) == labels) for logp, labels in self._log_probabilities(name)]))

    def _forget_truth(self) -> float:
        right, wrong = self._losses("forget", "paraphrased_answer"), self._wrong("forget")
        ratio = _ratio(right, wrong)
        return float(np.minimum(ratio, 1 / (ratio + EPSILON)).mean())

    @torch.inference_mode()
    def _rouge_l(self, name: str) -> float:
        """Return the mean ROUGE-L recall of greedy answers."""
        rows, tokenizer, scores = self._workload.rows(name), self._tokenizer, list[float]()
        tokenizer.padding_side = "left"
        for start in range(0, len(rows), self._batch):
            some = rows[start : start + self._batch]
            prompts = [f"Question: {row['question']}\nAnswer:" for row in some]
            asked = tokenizer(prompts, return_tensors="pt", padding=True)
            said: Any = self._model.generate(
                input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=False,
                max_new_tokens=self._workload.sizes.generated, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            texts = tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
            scores += [self._rouge.score(row["answer"], text)["rougeL"].recall
                       for row, text in zip(some, texts, strict=True)]  # fmt: skip
        return float(np.mean(scores))

    # Membership: scores are high where a text is less likely to be a member.

    def _auc(self, scores: Callable[[str], Sequence[float]]) -> float:
        """Return how often a holdout text scores higher than a member."""
        member, other = scores("forget"), scores("holdout")
        return float(mannwhitneyu(other, member).statistic) / (len(member) * len(other))

    def _zlib(self, name: str) -> list[float]:
        sizes = [len(zlib.compress(row["answer"].encode())) for row in self._workload.rows(name)]
        return list(self._losses(name, "answer") / np.array(sizes))

    def _min_k(self, name: str) -> list[float]:
        picked = (logp.gather(1, labels[:, None]).squeeze(1) for logp, labels in self._log_probabilities(name))
        return [-_lowest(values) for values in picked]

    def _min_k_plus_plus(self, name: str) -> list[float]:
        out = []
        for logp, labels in self._log_probabilities(name):
            p = logp.exp()
            mean = (p * logp).sum(-1)
            variance = (p * logp.square()).sum(-1) - mean.square()
            picked = logp.gather(1, labels[:, None]).squeeze(1)
            out.append(-_lowest((picked - mean) / variance.clamp(min=1e-6).sqrt()))
        return out

    def _gradient_norms(self, name: str) -> list[float]:
        """Return the mean over parameters of the gradient's norm, one example at a time."""
        out = []
        for row in self._workload.rows(name):
            one = tokenised(self._tokenizer, row["question"], row["answer"])
            one["labels"][-1] = IGNORED
            self._model.zero_grad()
            self._model(input_ids=one["input_ids"][None], labels=one["labels"][None]).loss.backward()
            norms = [p.grad.norm() for p in self._model.parameters() if p.grad is not None]
            out.append(float(torch.stack(norms).mean()))
        self._model.zero_grad()
        return out


def _lowest(values: Tensor) -> float:
    return float(values.sort().values[: max(1, int(MIN_K * len(values)))].mean())


def _strength(hits: Tensor) -> float:
    """Return the share of the answer after the last miss; one token's share where even the last is a miss."""
    misses = (~hits).nonzero()
    run = len(hits) if not len(misses) else len(hits) - 1 - int(misses[-1])
    return max(run, 1) / len(hits)


def _ratio(right: Floats, wrong: Floats) -> Floats:
    return np.asarray(np.exp(-wrong.mean(1)) / (np.exp(-right) + EPSILON))


def _utility(losses: tuple[Floats, Floats]) -> float:
    return float(np.maximum(0, 1 - _ratio(*losses)).mean())


def _among_options(losses: tuple[Floats, Floats]) -> float:
    right, wrong = np.exp(-losses[0]), np.exp(-losses[1])
    return float((right / (right + wrong.sum(1) + EPSILON)).mean())
