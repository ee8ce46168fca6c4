# SPDX-License-Identifier: Apache-2.0
"""Plain fine-tuning with the loop the methods use: makes targets and retain-only references."""

from __future__ import annotations

from pathlib import Path

from expunge.api.job import peak_memory_mb
from expunge.api.lineage import write_seen
from expunge.api.privacy import check_packages, private_task, spent_by
from expunge.api.workspace import Silent, Watcher, final_dtype, load_data, open_model
from expunge.audit.document import environment
from expunge.data.digests import data_digest
from expunge.data.loaders import load_examples
from expunge.data.preparation import is_wanted
from expunge.errors import RecipeError
from expunge.methods.weights import choose_parameters
from expunge.models.digests import model_digest
from expunge.models.loading import DTYPES, save_model
from expunge.recipe import TrainRecipe
from expunge.runs import RunFolder, check_output, earlier_run, write_text
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer, TrainingResult
from expunge.training.private_task import PoissonTask
from expunge.training.probe import LikelihoodProbe


def train(
    recipe: TrainRecipe,
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    commands: tuple[str, ...] = (),
    watcher: Watcher | None = None,
) -> Path:
    """Fine-tune `model.path` on `data.train`; return the run folder, whose `model/` loads with `from_pretrained`.

    The forget, retain and holdout sets, if given, are only probed while training.

    Args:
        recipe: what to do, resolved.
        output_dir: the run folder; default `runs/<name>-<hash8>`.
        overwrite: start again where a run already is.
        resume: go on where a run was interrupted; a finished run is returned as it is.
        commands: how to reproduce the run, for its `run.json`.
        watcher: follows the run.

    Raises:
        ExpungeError: one of its kinds; the run folder then says what happened.
    """
    config, watch = recipe.data, watcher or Silent()
    if config.train is None:
        raise RecipeError("a training set is needed", field="data.train", remedy="Give --data FILE")
    if is_wanted(config.noise, config.robust):
        raise RecipeError(
            "plain training has no forget term", field="data.noise, data.robust", remedy="Use them with `expunge run`"
        )
    check_packages(recipe.training)
    path = output_dir or Path("runs") / recipe.folder_name
    check_output(path, overwrite=overwrite, resume=resume)
    earlier = earlier_run(path, recipe.hash) if resume else {}
    if earlier.get("status") == "finished":
        return path
    examples = load_examples(config.train, name="train", columns=config.columns, limit=config.limit)
    splits = load_data(config, need_forget=False).splits
    watch.stage("Loading the model")
    opened = open_model(recipe.model, config, {"train": examples, **splits.named()}, dtype="float32")
    model, tokenizer, encoder = opened.model, opened.tokenizer, opened.encoder
    folder = RunFolder(path, overwrite=overwrite, resume=resume)
    write_text(folder.path / "recipe.yaml", recipe.to_yaml())
    folder.start({
        "kind": "train", "name": recipe.name, "recipe": recipe.to_dict(), "recipe_hash": recipe.hash,
        "environment": environment(), "data": {"train": {"n": len(examples), "digest": data_digest(examples)}},
        "commands": list(commands),
    })  # fmt: skip
    write_seen(folder.path, examples)
    with folder.recorded():
        rows = encoder.encode_many(examples, where="train")
        task: PoissonTask | FineTuneTask
        if recipe.training.privacy is not None:
            watch.stage("Finding the noise")
            task = private_task(rows, examples, recipe.training, recipe.seed)
        else:
            items = [row.encoded for row in rows]
            task = FineTuneTask(items, batch_size=recipe.training.batch_size, seed=recipe.seed)
        changed = choose_parameters(model, recipe.training, recipe.seed)
        probe = LikelihoodProbe(encoder, splits) if splits.forget or splits.retain else None
        trainer = Trainer(
            changed, task, recipe.training, pad_id=encoder.pad_id, folder=folder.path, probe=probe, callbacks=[watch]
        )
        watch.stage(f"Training on {len(examples)} examples")
        result: TrainingResult = trainer.run(resume=resume)
        changed.to(DTYPES[final_dtype(recipe.model)])
        save_model(changed, tokenizer, folder.path / "model", overwrite=True)
        folder.update({
            "model": {"path": recipe.model.path, "digest": opened.digest, "result_digest": model_digest(changed)},
            "steps": result.steps, "losses": dict(result.losses), "peak_memory_mb": peak_memory_mb(),
            "stopped": result.stopped,
            **({"privacy": spent_by(task, rows)} if isinstance(task, PoissonTask) else {}),
        })  # fmt: skip
    return folder.path
