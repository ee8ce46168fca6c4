# SPDX-License-Identifier: Apache-2.0
"""Print the tables of the page on locating records: `python docs/locate_table.py [SHARED]`.

SHARED holds `data/public_domain` and `weights/stories260K/hf`; without it only the table of the embedded archive is
made. `--text` leaves out the ways that need a model; with them a tiny model is trained first.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from random import Random

from expunge.data.fictitious import Archive, build_archive
from expunge.desk.locate.config import Corpus, LocateConfig, Subject, Way
from expunge.desk.locate.search import locate

PEOPLE, SUBJECTS = 100, 10
SAMPLES, WORDS = 40, 60
TEXT_WAYS: tuple[tuple[Way, ...], ...] = (("exact",), ("identifier",), ("ngram",), ("near",))
MODEL_WAYS: tuple[tuple[Way, ...], ...] = (("paraphrase",), ("influence",))
KINDS = ("copies", "words changed", "passages", "other words")


@dataclass
class World:
    """Rows, the kind of each planted row (none for others), and searches: what is looked for, rows that are meant."""

    rows: list[str] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)
    searches: list[tuple[Subject, set[int]]] = field(default_factory=list)

    def add(self, text: str, kind: str = "") -> int:
        """Add a row and return its number, from 1."""
        self.rows.append(text)
        if kind:
            self.kinds[len(self.rows)] = kind
        return len(self.rows)

    def write(self, folder: Path) -> Corpus:
        """Write the rows."""
        path = folder / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.rows))
        return Corpus(name="corpus", path=str(path))


def shouted(text: str) -> str:
    """Return a copy in other case and spacing."""
    return "  ".join(text.upper().split())


def changed(text: str, every: int, rng: Random) -> str:
    """Return a text with one word in `every` replaced, at least one."""
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, len(words) // every)):
        words[place] = "something"
    return " ".join(words)


def within(text: str, around: str) -> str:
    """Return a text in the middle of another."""
    words = around.split()
    return " ".join([*words[: len(words) // 2], text, *words[len(words) // 2 :]])


def archive_world(archive: Archive) -> World:
    """Return the archive as a corpus, with rows about some people planted in four forms among those about others."""
    world, rng = World(), Random(0)
    facts = archive.examples("full")
    asked = sorted({fact.subject for fact in facts})[:SUBJECTS]
    for row in archive.training_examples("full"):
        if row.subject not in asked:
            world.add(f"{row.prompt} {row.answer}")
    for fact in facts:
        if fact.subject not in asked:
            world.add(f"{fact.paraphrased_prompt} {fact.paraphrased_answer}")
    others, names = list(world.rows), {person.id: person.name for person in archive.people}
    for person in asked:
        own, meant = [fact for fact in facts if fact.subject == person], set[int]()
        for fact in own:
            text = f"{fact.prompt} {fact.answer}"
            around = " ".join(rng.sample(others, 2))
            forms = (shouted(text), changed(text, 12, rng), within(text, around),
                     f"{fact.paraphrased_prompt} {fact.paraphrased_answer}")  # fmt: skip
            meant |= {world.add(form, kind) for form, kind in zip(forms, KINDS, strict=True)}
        samples = tuple(f"{fact.prompt} {fact.answer}" for fact in own)
        world.searches.append((Subject(identifiers=(names[person],), samples=samples), meant))
    return world


def pieces(text: str, size: int = WORDS) -> list[str]:
    """Return a text in pieces of `size` words."""
    words = text.split()
    return [" ".join(words[start : start + size]) for start in range(0, len(words) - size + 1, size)]


def aligned(one: str, other: str, size: int = WORDS) -> list[tuple[str, str]]:
    """Return pieces of one text with the pieces of another that say the same, along words that both have in order."""
    a, b = one.split(), other.split()
    plain = [[re.sub(r"\W", "", word).lower() for word in words] for words in (a, b)]
    blocks = [block for block in SequenceMatcher(None, *plain, autojunk=False).get_matching_blocks() if block.size > 2]
    points = [(block.a, block.b) for block in blocks]
    out = []
    for (a0, b0), (a1, b1) in cuts(points, size):
        out.append((" ".join(a[a0:a1]), " ".join(b[b0:b1])))
    return out


def cuts(points: Sequence[tuple[int, int]], size: int) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield pairs of aligned places at least `size` words apart in the first text."""
    start = points[0]
    for point in points:
        if point[0] - start[0] >= size:
            yield start, point
            start = point


def book_world(folder: Path) -> World:
    """Return books in pieces, with pieces of one in three forms, and a second translation of a part of another."""
    world, rng = World(), Random(0)
    for name in ("alice_pg11.txt", "wizard_of_oz.txt"):
        for piece in pieces((folder / name).read_text("utf-8-sig")):
            world.add(piece)
    others = list(world.rows)
    holmes = pieces((folder / "sherlock_pg1661.txt").read_text("utf-8-sig"))
    chosen = set(rng.sample(range(len(holmes)), SAMPLES))
    samples, meant = [holmes[place] for place in sorted(chosen)], set[int]()
    for place, piece in enumerate(holmes):
        if place not in chosen:
            world.add(piece)
    for sample in samples:
        part = " ".join(sample.split()[WORDS // 6 : -(WORDS // 6)])
        forms = (shouted(sample), changed(sample, 12, rng), within(part, rng.choice(others)))
        meant |= {world.add(form, kind) for form, kind in zip(forms, KINDS, strict=False)}
    with zipfile.ZipFile(folder / "genesis.zip") as archive:
        web, kjv = (archive.read(f"genesis/english-{name}.txt").decode("latin-1") for name in ("web", "kjv"))
    pairs = aligned(web, kjv)
    asked = set(rng.sample(range(len(pairs)), SAMPLES))
    for place, (own, old) in enumerate(pairs):
        number = world.add(old, KINDS[3] if place in asked else "")
        if place in asked:
            samples.append(own)
            meant.add(number)
    world.searches.append((Subject(samples=tuple(samples)), meant))
    return world


def measured(world: World, ways: tuple[Way, ...], model: str | None = None) -> str:
    """Return one line of a table: recall by form, precision, rows found."""
    hit, wrong = dict.fromkeys(KINDS, 0), 0
    with tempfile.TemporaryDirectory() as name:
        corpus = world.write(Path(name))
        for subject, meant in world.searches:
            config = LocateConfig(ways=ways)
            found = {one.row for one in locate(subject, [corpus], config=config, salt=b"", model=model).found
                     if set(one.ways) & set(ways)}  # fmt: skip
            for row in found & meant:
                hit[world.kinds[row]] += 1
            wrong += len(found - meant)
    planted = [kind for _, meant in world.searches for kind in map(world.kinds.__getitem__, meant)]
    recall = [f"{hit[kind] / planted.count(kind):.2f}" for kind in KINDS]
    right = sum(hit.values())
    precision = f"{right / (right + wrong):.2f}" if right + wrong else "-"
    name = ways[0] if len(ways) == 1 else "all by text"
    return f"| {name} | {' | '.join(recall)} | {precision} | {right + wrong} |"


def text_lines(world: World) -> list[str]:
    """Return the lines of the ways by text, alone and together."""
    together: tuple[Way, ...] = ("exact", "identifier", "ngram", "near")
    possible = [way for way in TEXT_WAYS if way != ("identifier",) or world.searches[0][0].identifiers]
    return [measured(world, way) for way in (*possible, together)]


def model_lines(world: World, model: str) -> list[str]:
    """Return the lines of the ways that need a model."""
    return [measured(world, way, model) for way in MODEL_WAYS]


def trained(archive: Archive, folder: Path) -> str:
    """Train a tiny model on the archive and return its folder."""
    import torch

    from expunge.data.encoding import Encoder
    from expunge.models.loading import save_model
    from expunge.models.tiny import build_llama, build_tokenizer
    from expunge.training.config import TrainingConfig
    from expunge.training.finetune import FineTuneTask
    from expunge.training.loop import Trainer

    torch.set_num_threads(1)
    encoder = Encoder(build_tokenizer(archive.texts()), template="question", max_length=128)
    model = build_llama(len(encoder.tokenizer), hidden_size=64, layers=4, heads=4, context=128)
    items = [row.encoded for row in encoder.encode_many(archive.training_examples("full"), where="train")]
    config = TrainingConfig(learning_rate=4e-3, epochs=8, batch_size=16)
    Trainer(model, FineTuneTask(items, batch_size=16, seed=0), config, pad_id=encoder.pad_id).run()
    save_model(model, encoder.tokenizer, folder)
    return str(folder)


def main(arguments: Sequence[str]) -> None:
    """Print every table that can be made."""
    head = f"| way | {' | '.join(KINDS)} | precision | rows found |\n" + "| --- " * (len(KINDS) + 3) + "|"
    shared = [Path(argument) for argument in arguments if argument != "--text"]
    archive = build_archive(PEOPLE, seed=0)
    worlds: list[tuple[str, World, Callable[[Path], str]]] = [
        ("archive", archive_world(archive), lambda folder: trained(archive, folder / "model")),
    ]
    if shared:
        stories = str(shared[0] / "weights/stories260K/hf")
        worlds.append(("books", book_world(shared[0] / "data/public_domain"), lambda _: stories))
    for name, world, model in worlds:
        lines = text_lines(world)
        if "--text" not in arguments:
            with tempfile.TemporaryDirectory() as folder:
                lines += model_lines(world, model(Path(folder)))
        rows = f"{len(world.rows):,} rows, {len(world.kinds)} planted"
        sys.stdout.write(f"{name}: {rows}\n\n{head}\n" + "\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
