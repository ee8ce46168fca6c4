# SPDX-License-Identifier: Apache-2.0
"""Sharded training: what leaves takes exactly the stages that saw it along, and the rest keeps its bytes."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data.encoding import IGNORE, Encoded
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError, VerificationFailed
from expunge.models.tiny import build_llama
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.shards.config import ShardConfig, check_training
from expunge.training.shards.duplicates import jaccard, near_duplicates, shingles, units
from expunge.training.shards.manifest import Manifest, read_manifest, rows_digest
from expunge.training.shards.plan import expected_retrained, place_all, slice_numbers, stage_epochs, stage_seed
from expunge.training.shards.stages import (
    STAGE,
    WEIGHTS,
    ShardWork,
    Stage,
    drop_from,
    file_digest,
    load_moving,
    moving_weights,
    stage_folder,
    train_shard,
    train_shards,
    valid_stages,
)

TRAINING = TrainingConfig(learning_rate=1e-2, epochs=2, batch_size=3)


def start(seed: int = 0) -> nn.Module:
    return build_llama(40, hidden_size=8, layers=1, heads=2, context=8, seed=seed)


def example(name: str, text: str, subject: str = "") -> Example:
    return Example(id=name, prompt="", answer=text, kind="text", subject=subject)


@dataclass
class World:
    """A training set of random sequences, split and trained below a folder."""

    folder: Path
    items: list[Encoded]
    manifest: Manifest
    training: TrainingConfig = TRAINING

    @classmethod
    def of(cls, folder: Path, n: int, *, shards: int, slices: int, training: TrainingConfig = TRAINING) -> World:
        draw = np.random.default_rng(3)
        items = []
        for _ in range(n):
            ids = tuple(int(x) for x in draw.integers(3, 40, size=int(draw.integers(3, 8))))
            items.append(Encoded(ids, (IGNORE, *ids[1:]), ends_with_eos=False))
        examples = [example(f"e{i}", f"text number {i} of this set") for i in range(n)]
        places = place_all(
            examples, [1] * n, [rows_digest([item]) for item in items], shards=shards, slices=slices, seed=5,
            by_subject=True, threshold=None,
        )  # fmt: skip
        recipe = {"training": training.model_dump(mode="json"), "start": "0"}
        return cls(folder, items, Manifest(shards, slices, 5, training.epochs, recipe, tuple(places)), training)

    def works(self, manifest: Manifest, folder: Path | None = None) -> list[ShardWork]:
        found = []
        for shard in range(manifest.shards):
            keys = manifest.stage_keys(shard)
            stages = []
            for number, key in enumerate(keys):
                inside = manifest.in_stage(shard, number)
                items = tuple(None if manifest.places[i].deleted else self.items[i] for i in inside)
                stages.append(Stage(key, manifest.epochs_of(number), manifest.seed_of(shard, number), items))
            at = (folder or self.folder) / str(shard)
            found.append(ShardWork(shard, at, start, self.training, 0, tuple(stages), valid_stages(at, keys)))
        return found

    def train(self, manifest: Manifest | None = None, folder: Path | None = None) -> dict[int, int]:
        works = self.works(manifest or self.manifest, folder)
        for work in works:
            drop_from(work.folder, work.first)
        return train_shards(works, processes=1)

    def files(self, folder: Path | None = None) -> dict[str, tuple[str, int]]:
        root = folder or self.folder
        found = sorted(root.rglob("*"))
        return {str(p.relative_to(root)): (file_digest(p), p.stat().st_mtime_ns) for p in found if p.is_file()}


def hashes(files: dict[str, tuple[str, int]]) -> dict[str, str]:
    return {name: digest for name, (digest, _) in files.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two shards of seven and six, three slices each: neither divides."""
    made = World.of(tmp_path_factory.mktemp("sisa"), 13, shards=2, slices=3)
    made.train()
    return made


def test_every_index_that_leaves_changes_its_shard_alone_and_to_what_training_without_it_gives(
    world: World, tmp_path: Path
) -> None:
    before = world.files()
    last = max(i for i, p in enumerate(world.manifest.places) if p.slice == 2)  # in the remainder of a slice
    wanted = {last} | {min(i for i, p in enumerate(world.manifest.places) if p.slice == s) for s in range(3)}
    for index in sorted(wanted):
        place = world.manifest.places[index]
        after, here, scratch = world.manifest.without([index]), tmp_path / f"f{index}", tmp_path / f"s{index}"
        shutil.copytree(world.folder, here)
        read = world.train(after, here)
        world.train(after, scratch)
        assert hashes(world.files(here)) == hashes(world.files(scratch))
        kept = [n for n in before if n.split("/")[0] != str(place.shard) or int(n.split("/")[1][-3:]) < place.slice]
        assert {n: world.files(here)[n] for n in kept} == {n: before[n] for n in kept}, "hash and mtime"
        changed = {n for n in before if n.endswith(WEIGHTS) and world.files(here)[n][0] != before[n][0]}
        assert changed == {f"{place.shard}/stage-{s:03d}/{WEIGHTS}" for s in range(place.slice, 3)}
        assert [s for s, rows in read.items() if rows] == [place.shard]


def test_every_index_changes_the_keys_from_its_slice_on_and_no_other(world: World) -> None:
    """The published code hashes slices by floor(n / R), so that what remains of the division is never unlearned."""
    before = {s: world.manifest.stage_keys(s) for s in range(2)}
    for index, place in enumerate(world.manifest.places):
        after = world.manifest.without([index])
        for shard in range(2):
            same = [a == b for a, b in zip(before[shard], after.stage_keys(shard), strict=True)]
            assert same == [shard != place.shard or stage < place.slice for stage in range(3)]


@pytest.mark.parametrize("change", ["learning_rate", "batch_size", "seed", "start", "code", "order", "epochs"])
def test_keys_cover_what_decides_the_weights(world: World, change: str) -> None:
    """The published hash covers the surviving indices alone."""
    manifest, recipe = world.manifest, world.manifest.recipe
    if change in ("learning_rate", "batch_size"):
        other = replace(manifest, recipe={**recipe, "training": {**recipe["training"], change: 7}})
    elif change == "seed":
        other = replace(manifest, seed=6)
    elif change == "epochs":
        other = replace(manifest, epochs=4)
    elif change == "order":
        first, second = [i for i, p in enumerate(manifest.places) if (p.shard, p.slice) == (0, 0)][:2]
        places = list(manifest.places)
        places[first], places[second] = places[second], places[first]
        other = replace(manifest, places=tuple(places))
    else:
        other = replace(manifest, recipe={**recipe, change: "another"})
    assert manifest.stage_keys(0)[0] != other.stage_keys(0)[0]


def test_the_order_of_deletions_does_not_matter(world: World, tmp_path: Path) -> None:
    found = []
    chosen = [0, 5, 12]
    for number, order in enumerate([chosen, chosen[::-1]]):
        folder, manifest = tmp_path / str(number), world.manifest
        shutil.copytree(world.folder, folder)
        for index in order:  # each chosen after the model before was there
            manifest = manifest.without([index])
            world.train(manifest, folder)
        found.append(hashes(world.files(folder)))
    world.train(world.manifest.without(chosen), tmp_path / "once")
    assert found[0] == found[1] == hashes(world.files(tmp_path / "once"))


def test_one_shard_of_one_slice_is_plain_training(tmp_path: Path) -> None:
    world = World.of(tmp_path / "w", 10, shards=1, slices=1)
    world.train()
    plain = start()
    Trainer(plain, FineTuneTask(world.items, batch_size=3, seed=5), TRAINING, pad_id=0).run()
    trained = start()
    load_moving(trained, stage_folder(world.folder / "0", 0) / WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), trained.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), start().parameters(), strict=True))


def test_a_batch_whose_rows_all_left_is_a_step_in_which_nothing_moves(tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"batch_size": 1})
    world = World.of(tmp_path / "w", 4, shards=1, slices=1, training=training)
    world.train(world.manifest.without([2]))
    stage = world.works(world.manifest.without([2]))[0].stages[0]
    task = FineTuneTask(stage.items, batch_size=1, seed=5)
    assert sorted(len(step) for step in task.steps(0)) == [0, 1, 1, 1]
    model, seen = start(), []
    for epoch, left in itertools.product(range(2), range(4)):
        seen.append((epoch, left, task.steps(epoch)[left]))
    trainer = Trainer(model, task, training, pad_id=0, seed=5)
    trainer.run()
    trained = start()
    load_moving(trained, stage_folder(world.folder / "0", 0) / WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    rest = [row.encoded for _, _, step in seen for group in step for row in group]
    assert len(rest) == 6
    assert world.items[2] not in rest


def test_a_shard_that_everything_left_is_the_model_it_started_from(tmp_path: Path) -> None:
    world = World.of(tmp_path / "w", 5, shards=2, slices=2)
    gone = [i for i, p in enumerate(world.manifest.places) if p.shard == 1]
    world.train(world.manifest.without(gone))
    model = start()
    load_moving(model, stage_folder(world.folder / "1", 1) / WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start().parameters(), strict=True))


def test_an_empty_slice_trains_on_those_before_it() -> None:
    assert slice_numbers([10, 1], 4) == [1, 3]
    assert slice_numbers([], 3) == []


def test_a_training_that_was_cut_off_goes_on_after_its_last_finished_stage(world: World, tmp_path: Path) -> None:
    """The published recovery starts again at the saved epoch and repeats it."""
    for finished in range(3):
        folder = tmp_path / str(finished)
        shutil.copytree(world.folder, folder)
        for stage in range(finished, 3):
            shutil.rmtree(stage_folder(folder / "0", stage))
        (folder / "0" / ".partial-stage-002").mkdir()
        read = world.train(world.manifest, folder)
        epochs, sizes = stage_epochs(2, 3), [len(world.manifest.in_stage(0, s)) for s in range(3)]
        assert read == {0: sum(epochs[s] * sizes[s] for s in range(finished, 3)), 1: 0}
        assert hashes(world.files(folder)) == hashes(world.files())


def test_a_checkpoint_whose_bytes_changed_is_not_used(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.folder, tmp_path / "w")
    path = stage_folder(tmp_path / "w" / "0", 1) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert valid_stages(tmp_path / "w" / "0", world.manifest.stage_keys(0)) == 1


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_bytes(world: World, tmp_path: Path) -> None:
    works = [replace(work, folder=tmp_path / str(work.shard), first=0) for work in world.works(world.manifest)]
    works = [replace(w, open=partial(build_llama, 40, hidden_size=8, layers=1, heads=2, context=8)) for w in works]
    train_shards(works, processes=2)
    assert hashes(world.files(tmp_path)) == hashes(world.files())


def test_training_leaves_no_trace_in_the_generators_of_torch(world: World, tmp_path: Path) -> None:
    """The published code sets no seed; here every stage has one, and what ran before does not matter."""
    work = replace(world.works(world.manifest)[0], folder=tmp_path, first=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train_shard(work)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert file_digest(stage_folder(tmp_path, 2) / WEIGHTS) == file_digest(
        stage_folder(world.folder / "0", 2) / WEIGHTS
    )


@pytest.mark.parametrize(("epochs", "slices", "each"), [(3, 1, [3]), (3, 5, [1] * 5), (20, 4, [8] * 4), (2, 3, [1] * 3),
                                                         (5, 3, [2, 3, 2])])  # fmt: skip
def test_stages_share_the_epochs(epochs: int, slices: int, each: list[int]) -> None:
    """e_r = 2 e' / (R + 1), so that with equal slices as many rows are read as in e' epochs."""
    found = stage_epochs(epochs, slices)
    assert found == each
    read = sum(e * (r + 1) / slices for r, e in enumerate(found))
    assert read == pytest.approx(epochs, abs=1.0)


def test_seeds_differ_and_the_first_is_that_of_the_run() -> None:
    seeds = [stage_seed(9, s, r) for s in range(4) for r in range(4)]
    assert seeds[0] == 9
    assert len(set(seeds)) == 16


@pytest.mark.parametrize("values", [{"max_steps": 3}, {"epochs": 1}, {"stop": {"rule": "utility_drop"}}])
def test_settings_that_a_plan_cannot_hold_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="training"):
        check_training(TrainingConfig(**{"epochs": 4, **values}), ShardConfig(slices=3))  # type: ignore[arg-type]


def test_batch_cost_follows_the_formula_in_a_simulation() -> None:
    draw, n, shards = np.random.default_rng(0), 10_000, 10
    for deleted, published in ((4, 3435), (18, 8481)):
        runs = []
        for _ in range(300):
            gone = draw.choice(n, size=deleted, replace=False)
            runs.append(len(set((gone % shards).tolist())) * n / shards - deleted)
        assert expected_retrained(n, shards, deleted) == pytest.approx(published, abs=1)
        assert np.mean(runs) == pytest.approx(published, abs=4 * np.std(runs) / math.sqrt(300))


def test_batch_cost_follows_the_formula_in_runs(tmp_path: Path) -> None:
    """Rows actually read again, over all pairs of deletions of six examples in three shards of two."""
    training = TRAINING.model_copy(update={"epochs": 1})
    world = World.of(tmp_path / "w", 6, shards=3, slices=1, training=training)
    world.train()
    read = []
    for k, pair in enumerate(itertools.combinations(range(6), 2)):
        shutil.copytree(world.folder, tmp_path / str(k))
        read.append(sum(world.train(world.manifest.without(pair), tmp_path / str(k)).values()))
    # Without replacement: 3 of the 15 pairs are one whole shard (0 rows), the others touch two shards (2 rows).
    assert np.mean(read) == 12 / 15 * 2
    assert expected_retrained(6, 3, 2) == pytest.approx(6 * 5 / 9 - 2)


def brute(examples: Sequence[Example], threshold: float) -> set[tuple[int, int]]:
    pairs = itertools.combinations(range(len(examples)), 2)
    return {(i, j) for i, j in pairs if jaccard(shingles(examples[i]), shingles(examples[j])) >= threshold}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_near_duplicates_are_all_found(threshold: float) -> None:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(list("abcd"), size=int(draw.integers(1, 9)))) for _ in range(60)]
    found = [example(str(i), text) for i, text in enumerate(texts)]
    assert set(near_duplicates(found, threshold)) == brute(found, threshold) != set()


def test_subjects_and_near_duplicates_stay_together() -> None:
    texts = ["Ada was born in Rome in 1901", "one two three four", "ADA was born, in Rome in 1901!",
             "five six seven eight", "nine ten eleven twelve"]  # fmt: skip
    subjects = ["Ada", "Ben", "Cleo", "Ben", ""]
    found = [example(str(i), text, who) for i, (text, who) in enumerate(zip(texts, subjects, strict=True))]
    assert units(found, by_subject=True, threshold=0.7) == [0, 1, 0, 1, 4]
    assert units(found, by_subject=False, threshold=1.0) == [0, 1, 0, 3, 4]
    places = place_all(found, [1] * 5, list("abcde"), shards=3, slices=1, seed=0, by_subject=True, threshold=0.7)
    assert (places[0].shard, places[1].shard) == (places[2].shard, places[3].shard)
    assert len({p.shard for p in places}) == 3
    with pytest.raises(RecipeError, match="3 units"):
        place_all(found, [1] * 5, list("abcde"), shards=4, slices=1, seed=0, by_subject=True, threshold=0.7)


def test_the_manifest_is_read_back_and_a_change_is_noticed(world: World, tmp_path: Path) -> None:
    world.manifest.write(tmp_path)
    assert read_manifest(tmp_path) == world.manifest
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(VerificationFailed):
        read_manifest(tmp_path)
    with pytest.raises(InputDataError):
        read_manifest(tmp_path / "nowhere")


def test_what_left_cannot_be_named_again(world: World) -> None:
    after = world.manifest.without(world.manifest.find(["e3"], []))
    assert after.places[3].deleted
    assert (after.places[3].subject, after.places[3].digest) == ("", "")
    for ids, subjects in ((["e3"], []), (["nobody"], []), ([], ["nobody"])):
        with pytest.raises(InputDataError):
            after.find(ids, subjects)


def test_moving_weights_are_those_that_train(fresh: Callable[[], nn.Module]) -> None:
    model = fresh().requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    assert len(moving_weights(model)) == 1
    assert STAGE.endswith(".json")
