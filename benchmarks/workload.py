# SPDX-License-Identifier: Apache-2.0
"""What is measured on: a Llama with random weights and a TOFU-shaped data set in its own words.

The weights are random, but scaled so that the metrics are not trivial: the embedding, so that greedy text does not run
in circles; the head, so that the distribution over the next token is not flat; its end-of-sequence row, so that about
one token in the mean answer length ends a generation, as in a model that learned its answers. Answers are the model's
own continuations with a share of their words replaced: the smallest share in the forget set, a larger one in
paraphrases and wrong answers, so that matches, ROUGE and membership scores have something to tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.sizes import ANSWERS, QUESTIONS, Sizes, length
from expunge.models.tiny import BOS, EOS, EOS_ID, PAD, build_llama
from expunge.signals.generation import generate
from expunge.signals.head import body

UNKNOWN = "<unk>"
#: Words of the prompt template; the separators are white space, which is no token.
TEMPLATE = ("Question:", "Answer:")
#: How much of each kind of answer is the model's own continuation.
KEPT = {"forget": 0.8, "retain": 0.7, "authors": 0.7, "facts": 0.7, "holdout": 0.5, "paraphrase": 0.5, "wrong": 0.4}
#: Wrong answers per example, as in TOFU.
WRONG = {"forget": 5, "retain": 5, "authors": 3, "facts": 3, "holdout": 0}
#: Name of each set in an audit.
SETS = {"forget": "forget", "retain": "retain", "authors": "real_authors", "facts": "world_facts", "holdout": "holdout"}
#: Factor on the embedding, whose entries are drawn with standard deviation 0.02.
EMBEDDING_SCALE = 20.0
#: Standard deviation of the logits.
LOGIT_SPREAD = 3.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A folder with `model/` and one JSONL file per set.

    Attributes:
        folder: where it is.
        sizes: what it was made from.
    """

    folder: Path
    sizes: Sizes

    @property
    def model_path(self) -> str:
        """Folder of the model and its tokenizer."""
        return str(self.folder / "model")

    def file(self, which: str) -> str:
        """Return the file of a set: `forget`, `retain`, `authors`, `facts` or `holdout`."""
        return str(self.folder / f"{which}.jsonl")

    def rows(self, which: str) -> list[dict[str, Any]]:
        """Return the rows of a set, under the column names of TOFU."""
        return [json.loads(line) for line in Path(self.file(which)).read_text("utf-8").splitlines()]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model, in float32, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(self.model_path)


def open_workload(folder: Path) -> Workload:
    """Return a workload that `build_workload` wrote."""
    return Workload(folder, Sizes.from_dict(json.loads((folder / "sizes.json").read_text("utf-8"))))


def build_workload(folder: Path, sizes: Sizes) -> Workload:
    """Make model, tokenizer and data of these sizes; the same sizes give the same bytes on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(sizes.vocabulary)
    model = build_llama(
        sizes.vocabulary, hidden_size=sizes.width, layers=sizes.layers, heads=sizes.heads,
        intermediate_size=sizes.intermediate, context=2 * (sum(sizes.longest) + sizes.generated),
        seed=sizes.seed,
    )  # fmt: skip
    scale_weights(model, sizes)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = np.random.default_rng(sizes.seed)
    for which in SETS:
        rows = _rows(model, tokenizer, which, getattr(sizes, which), sizes, rng)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{which}.jsonl").write_text(lines, "utf-8")
    (folder / "sizes.json").write_text(json.dumps(sizes.to_dict()), "utf-8")
    return Workload(folder, sizes)


def words(count: int) -> list[str]:
    """Return so many different words, two syllables or more."""
    syllables = ["".join(pair) for pair in product("bdfghjklmnprstvz", "aeiou")]

    def every() -> Iterator[str]:
        for count in (2, 3):
            yield from ("".join(parts) for parts in product(syllables, repeat=count))

    found = every()
    return [next(found) for _ in range(count)]


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, `<pad>`, `<eos>` and `<bos>` being 0, 1 and 2."""
    special = [PAD, EOS, BOS, UNKNOWN]
    entries = [*special, *TEMPLATE]
    entries += words(vocabulary - len(entries))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token=BOS, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@torch.inference_mode()
def scale_weights(model: PreTrainedModel, sizes: Sizes) -> None:
    """Scale embedding and head, and the end-of-sequence row so that one position in the mean answer length takes it."""
    model.get_input_embeddings().weight *= EMBEDDING_SCALE
    head = model.get_output_embeddings().weight
    first = len(TEMPLATE) + 4
    ids = torch.randint(first, sizes.vocabulary, (16, 64), generator=torch.Generator().manual_seed(sizes.seed))
    states = body(model, ids, torch.ones_like(ids)).flatten(0, 1)
    head *= LOGIT_SPREAD / float((states @ head.T).std())
    logits = states @ head.T
    end = logits[:, EOS_ID].clone()
    logits[:, EOS_ID] = -torch.inf
    factor = (logits.max(1).values / end)[end > 0]  # from which factor on a position prefers to end
    wanted = len(states) / sizes.answer
    head[EOS_ID] *= float(factor.sort().values[int(wanted)])
    head[:EOS_ID] = 0.0
    head[EOS_ID + 1 : first] = 0.0  # the other special tokens and the template are never said


def _rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, which: str, count: int, sizes: Sizes,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:  # fmt: skip
    same = np.random.default_rng(sizes.seed)
    template = _words(tokenizer, sizes.prompt - sizes.question - len(TEMPLATE), same, sizes)
    prompts = [f"{template} {_words(tokenizer, length(sizes.question, QUESTIONS, rng.random()), rng, sizes)}"
               for _ in range(count)]  # fmt: skip
    starts = [tokenizer(f"Question: {prompt}\nAnswer:")["input_ids"] for prompt in prompts]
    said: list[tuple[int, ...]] = [()] * count
    if sizes.generated:
        said = [found.ids for found in generate(model, tokenizer, starts, max_new_tokens=sizes.longest[1])]
    rows = []
    for number, (prompt, own) in enumerate(zip(prompts, said, strict=True)):

        def answer(kind: str, own: Sequence[int] = own) -> str:
            return _answer(tokenizer, own, KEPT[kind], sizes, rng)

        row: dict[str, Any] = {"id": f"{which}-{number}", "question": prompt, "answer": answer(which)}
        if WRONG[which]:
            row["perturbed_answer"] = [answer("wrong") for _ in range(WRONG[which])]
        if which in ("forget", "retain"):
            row["paraphrased_answer"] = answer("paraphrase")
        rows.append(row)
    return rows


def _words(tokenizer: PreTrainedTokenizerBase, count: int, rng: np.random.Generator, sizes: Sizes) -> str:
    ids = rng.integers(len(TEMPLATE) + 4, sizes.vocabulary, count)
    return str(tokenizer.decode(ids.tolist()))


def _answer(
    tokenizer: PreTrainedTokenizerBase, own: Sequence[int], kept: float, sizes: Sizes, rng: np.random.Generator
) -> str:
    count = max(2, length(sizes.answer, ANSWERS, rng.random())) - 1  # the end-of-sequence token is one more
    ids = rng.integers(len(TEMPLATE) + 4, sizes.vocabulary, count)
    stays = rng.random(count) < kept
    for place, token in enumerate(own[:count]):
        if stays[place]:
            ids[place] = token
    return str(tokenizer.decode(ids.tolist()))


def token_counts(workload: Workload, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, float]:
    """Return the mean tokens of prompts and answers of the forget set, template and end-of-sequence included."""
    rows = workload.rows("forget")
    prompts = [len(tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]) for row in rows]
    answers = [len(tokenizer(row["answer"])["input_ids"]) + 1 for row in rows]
    return {"prompt": float(np.mean(prompts)), "answer": float(np.mean(answers))}
