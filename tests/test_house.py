# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no other tool holds: floors, sizes, start-up time, environment, and what is written."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.claims import lint

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "expunge"
FILES = sorted(SOURCE.rglob("*.py"))

#: Rooms by floor: a room imports from itself and from lower floors, never from above and never from beside.
FLOORS = (
    ("errors",),
    ("objectives", "models", "data", "claims", "runs"),
    ("optim", "signals"),
    ("training", "audit"),
    ("methods", "attacks", "benchmarks", "report", "ledger"),
    ("recipe",),
    ("api",),
    ("studies", "desk", "serving"),
    ("dashboard",),
    ("cli",),
    ("",),  # the package's own door, expunge/__init__.py: it may open on every room, and no room goes through it
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
#: The door's names that are no rooms and that every room may take.
DOOR_NAMES = {"__version__"}


def room_of(module: str) -> str:
    """`expunge.audit.metrics` is in room `audit`, `expunge` itself is the door ``."""
    return module.removesuffix(".__main__").partition(".")[2].partition(".")[0]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every one of our modules a file imports, wherever the statement stands."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            from_door = origin == "expunge"
            names = [f"expunge.{a.name}" for a in node.names if a.name not in DOOR_NAMES] if from_door else [origin]
        yield from (name for name in names if name.split(".")[0] == "expunge")


def broken_arrows(module: str, code: str, *, package: str) -> list[str]:
    """Imports of a file that do not point to its own room or down."""
    room = room_of(module)
    targets = {room_of(name) for name in imported(ast.parse(code), package)} - {room}
    unknown = [name for name in (room, *targets) if name not in FLOOR]
    if unknown:
        return [f"{module}: {name!r} is on no floor; add it to FLOORS" for name in unknown]
    allowed = 0 if room == "objectives" else FLOOR[room]
    return [f"{module} (floor {FLOOR[room]}) imports {t} (floor {FLOOR[t]})" for t in targets if FLOOR[t] >= allowed]


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_point_down() -> None:
    broken = []
    for path in FILES:
        package = ".".join(path.relative_to(SOURCE.parent).parent.parts)
        broken += broken_arrows(module_name(path), path.read_text("utf-8"), package=package)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("module", "code", "fine"),
    [
        ("expunge.methods.npo", "from expunge.training.loop import Trainer", True),
        ("expunge.methods.npo", "from .base import Method", True),
        ("expunge.methods.npo", "from expunge import __version__", True),
        ("expunge.methods.npo", "import torch", True),
        ("expunge.methods.npo", "from expunge.report import render", False),  # beside
        ("expunge.methods.npo", "from ..api import run", False),  # above, relative
        ("expunge.methods.npo", "from expunge import api", False),  # above, through the door
        ("expunge.methods.npo", "from expunge import unlearn", False),  # the door's own names
        ("expunge.data.loaders", "from expunge.runs import write_json", False),  # beside
        ("expunge.audit.metrics", "def f():\n    from expunge.recipe import Recipe", False),  # inside a function
        ("expunge.audit.metrics", "if TYPE_CHECKING:\n    import expunge.recipe", False),  # for types only
        ("expunge.objectives.likelihood", "from expunge.errors import RecipeError", False),  # nothing of ours at all
        ("expunge.objectives.likelihood", "from expunge.objectives.reduction import Reduction", True),
        ("expunge.attic.box", "import torch", False),  # no such room
    ],
)
def test_the_arrow_is_read_rightly(module: str, code: str, fine: bool) -> None:
    assert (not broken_arrows(module, code, package=module.rpartition(".")[0])) is fine


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert length <= 80, f"{node.name} has a body of {length} lines"


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_source_text_says_what_must_not_be_said() -> None:
    """Every string of the package may end up before a reader; `claims.py` holds the patterns themselves."""
    found = []
    for path in FILES:
        if path != SOURCE / "claims.py":
            said = (line for text in strings(ast.parse(path.read_text("utf-8"))) for line in lint(text))
            found += [f"{module_name(path)}: {line}" for line in said]
    assert not found, "\n".join(found)


def prose(markdown: str) -> str:
    """A page without code and quotations: a sentence that is quoted to be refused is not said."""
    for pattern in (r"(?ms)^ *(```|~~~).*?^ *\1", r"`[^`\n]*`", r'"[^"]*"', r"“[^”]*”", r"(?m)^ *>.*$"):
        markdown = re.sub(pattern, " ", markdown)
    return markdown


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCE.rglob("*.md")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_says_what_must_not_be_said(path: Path) -> None:
    assert not lint(prose(path.read_text("utf-8")))


def test_a_refused_sentence_may_be_quoted_but_not_said() -> None:
    assert lint(prose("After this the data is deleted."))
    assert not lint(prose('Never written: "the data is deleted".\n\n```\nthe data is deleted\n```\n'))


HELP = "import sys; from expunge.cli.main import main; sys.argv = ['expunge', '--help']; main()"
HEAVY = ("torch", "transformers", "scipy", "pyarrow", "datasets", "peft", "accelerate")
#: Wraps the command so that the modules it loaded are known, whichever way it exits.
WATCHED = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {HELP}"


def fastest(code: str) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.skipif(importlib.util.find_spec("expunge.cli.main") is None, reason="there is no expunge.cli.main yet")
def test_help_is_quick_and_light() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], check=True, capture_output=True, text=True, timeout=60)
    assert "audit" in done.stdout
    loaded = set(done.stderr.split())
    assert "expunge.cli.main" in loaded
    assert not loaded & set(HEAVY)
    assert fastest(HELP) - fastest("pass") < 1.0, "seconds, beyond those that Python itself takes to start"


def test_the_environment_is_the_one_the_constraints_name() -> None:
    for package in ("torchvision", "torchaudio"):
        assert importlib.util.find_spec(package) is None, f"{package} breaks transformers beside a CPU build of torch"
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = re.search(r"^torch==(\S+)$", constraints, flags=re.MULTILINE)
    assert pinned is not None
    assert importlib.metadata.version("torch").partition("+")[0] == pinned[1]
