# SPDX-License-Identifier: Apache-2.0
"""Print the tables of the page on variants: `python docs/compat_table.py FOLDER`, the folder with the published logs.

FOLDER holds `tofu_eval_logs/` and `muse_eval_logs/`. Without it only the table of the embedded archive is made, which
trains two tiny models (a minute on one core).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from expunge.api.from_records import audit_records
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.metrics import compute_metrics
from expunge.audit.published_muse import MUSE_LOG

VARIANTS = ("fixed", "paper", "locuslab", "openunlearning", "muse")
TOFU = ("model_utility", "forget.truth_ratio", "forget_quality", "forget_quality_ks", "real_authors.probability")
MUSE = ("verbmem.rouge_l_f1", "verbmem", "knowmem_f", "privleak_auc", "privleak_published")
ARCHIVE = (
    "model_utility", "forget.truth_ratio", "forget_quality", "forget.rouge_l_f1", "forget.extraction_strength",
    "forget.exact_memorization", "membership.loss.auc", "membership.min_k.auc", "membership.min_k_plus_plus.auc",
    "privleak_auc", "privleak", "aggregate.memorization",
)  # fmt: skip
MODEL = "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01.json"
PEOPLE, EPOCHS = 20, 12
ASCENT = {"learning_rate": 2e-3, "epochs": 8}

Metrics = Mapping[str, Estimate]


def settings(names: Sequence[str], variant: str) -> AuditConfig:
    """Return the audit settings of one column."""
    return AuditConfig.model_validate({"metrics": names, "compat": variant, "bootstrap": 100, "max_new_tokens": 32})


def table(names: Sequence[str], column: Callable[[str], Metrics]) -> str:
    """Return one row a metric, one column a variant; a number is bold where it differs from `fixed`."""
    columns = {variant: column(variant) for variant in VARIANTS}
    lines = [f"| metric | {' | '.join(f'`{variant}`' for variant in VARIANTS)} |", "| --- " * (len(VARIANTS) + 1) + "|"]
    for name in names:
        shown = [number(columns[variant][name].value) for variant in VARIANTS]
        cells = [text if text == shown[0] else f"**{text}**" for text in shown]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Return four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def tofu_table(folder: Path) -> str:
    """Return the table of the published Llama-2 model that knows all of TOFU, against the retained one."""
    full, retained = (folder / "tofu_eval_logs" / MODEL.format(name) for name in ("full", "retain90"))

    def column(variant: str) -> Metrics:
        document = audit_records({"m": full}, reference=retained, config=settings(TOFU, variant))
        return {name: Estimate(**found.model_dump()) for name, found in document.models["m"].metrics.items()}

    return table(TOFU, column)


def muse_table(folder: Path) -> str:
    """Return the table of a published model that was unlearned on MUSE Books."""
    books = replace(MUSE_LOG, name="muse-books")

    def column(variant: str) -> Metrics:
        paths = {"m": folder / "muse_eval_logs" / "ga_klr"}
        document = audit_records(paths, config=settings(MUSE, variant), protocol=books)
        return {name: Estimate(**found.model_dump()) for name, found in document.models["m"].metrics.items()}

    return table(MUSE, column)


def archive_table() -> str:
    """Return the table of a tiny model that learned the embedded archive and was pushed off a tenth of it by ascent."""
    import torch

    from expunge.api.memory import unlearn
    from expunge.audit.collect import collect
    from expunge.benchmarks.fictitious import Fictitious
    from expunge.data.encoding import Encoder
    from expunge.data.fictitious import build_archive
    from expunge.models.tiny import build_llama, build_tokenizer
    from expunge.training.config import TrainingConfig
    from expunge.training.finetune import FineTuneTask
    from expunge.training.loop import Trainer

    torch.set_num_threads(1)
    archive = build_archive(PEOPLE)
    encoder = Encoder(build_tokenizer(archive.texts()), template="question", max_length=128)
    data = Fictitious(people=PEOPLE).load(None, split="forget10")
    records = {}
    for which in ("full", "retain90"):
        model = build_llama(len(encoder.tokenizer), hidden_size=64, layers=2, heads=4, context=128)
        items = [row.encoded for row in encoder.encode_many(archive.training_examples(which), where="train")]
        config = TrainingConfig(learning_rate=4e-3, epochs=EPOCHS, batch_size=16)
        Trainer(model, FineTuneTask(items, batch_size=16, seed=0), config, pad_id=encoder.pad_id).run()
        if which == "full":
            forget = archive.training_examples("forget10")
            pushed = unlearn(model, encoder.tokenizer, forget=forget, method="ga", training=ASCENT, template="question")
            model = pushed.model
        records[which] = collect(model, encoder, data.sets, config=settings(("*",), "fixed"), protocol=data.protocol)

    def column(variant: str) -> Metrics:
        config = settings(ARCHIVE, variant)
        return compute_metrics(records["full"], protocol=data.protocol, config=config, reference=records["retain90"])

    return table(ARCHIVE, column)


def main(arguments: Sequence[str]) -> None:
    """Print every table that can be made."""
    made = [("archive", archive_table())]
    if arguments:
        folder = Path(arguments[0])
        made += [("TOFU log", tofu_table(folder)), ("MUSE log", muse_table(folder))]
    for name, text in made:
        sys.stdout.write(f"{name}\n\n{text}\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
