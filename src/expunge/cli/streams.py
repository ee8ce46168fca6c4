# SPDX-License-Identifier: Apache-2.0
"""What goes where: results to stdout, everything else to stderr, and errors to an exit code."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from expunge.errors import ExpungeError, ExpungeWarning, Interrupted

P = ParamSpec("P")

#: Width of results that no terminal shows: wide enough that no name is cut.
PIPED_WIDTH = 160
#: Models of fewer parameters are slower on several threads than on one; their weights take four bytes each.
SMALL_MODEL = 20_000_000


def out() -> Console:
    """Return the console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """Return the console for progress, logs and errors."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False)


def print_json(text: str) -> None:
    """Write one JSON document to stdout, and nothing else."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def say(label: str, style: str, text: str, remedy: str = "") -> None:
    """Write a message to stderr, its label in colour where there is any, and what to do about it below."""
    console = err()
    console.print(Text.assemble((label, style), " ", text), soft_wrap=True)
    if remedy:
        console.print(Text(" " * (len(label) + 1) + remedy, style="dim" if console.is_terminal else ""), soft_wrap=True)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into a message on stderr and an exit code."""

    @functools.wraps(command)
    def inner(*args: P.args, **kwargs: P.kwargs) -> None:
        _watch_warnings()
        try:
            command(*args, **kwargs)
        except Interrupted as error:
            say("interrupted:", "bold yellow", _problem(error).removeprefix("interrupted "), error.remedy)
            raise typer.Exit(error.exit_code) from None
        except ExpungeError as error:
            say("error:", "bold red", _problem(error), error.remedy)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("interrupted:", "bold yellow", "nothing was written")
            raise typer.Exit(Interrupted.exit_code) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("EXPUNGE_DEBUG"):
                raise
            say("error:", "bold red", f"unexpected {type(error).__name__}: {error}",
                "Set EXPUNGE_DEBUG=1 and run again for the traceback, and please report it")  # fmt: skip
            raise typer.Exit(1) from None

    return inner


def _problem(error: ExpungeError) -> str:
    """Return the message without its remedy."""
    return str(error).removesuffix(f". {error.remedy}") if error.remedy else str(error)


@contextmanager
def interruptible(path: Path) -> Iterator[None]:
    """Say what an interrupt outside the training loop leaves behind in `path`."""
    try:
        yield
    except KeyboardInterrupt:
        from expunge.runs import read_run

        if read_run(path).get("status") != "interrupted":
            raise
        raise Interrupted(f"what was done is saved in {path}", remedy="Go on with --resume") from None


def quiet_libraries() -> None:
    """Silence the bars and logs of the libraries that load models."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _watch_warnings() -> None:
    """Print our own warnings in one line each, and silence those of the libraries."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=ExpungeWarning)
    warnings.showwarning = _show_warning
    logger = logging.getLogger("expunge")
    logger.handlers = [_OnceHandler()]
    logger.propagate = False


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    del category, filename, lineno, file, line
    say("warning:", "bold yellow", str(message))


class _OnceHandler(logging.Handler):
    """Prints every different log message of ours once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record unless it was printed before."""
        text = record.getMessage()
        if text not in self._seen:
            self._seen.add(text)
            say(f"{record.levelname.lower()}:", "bold yellow", text)


def limit_threads(model: str | None = None) -> None:
    """Use one thread for a small model, unless the user chose a number of threads.

    Args:
        model: folder whose weights tell the size; None for a model that is known to be small.
    """
    size = 0 if model is None else sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    unknown = model is not None and size == 0
    if "OMP_NUM_THREADS" not in os.environ and not unknown and size < 4 * SMALL_MODEL:
        import torch

        torch.set_num_threads(1)
