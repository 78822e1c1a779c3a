"""The command line: parses, dispatches, and turns errors into one sentence and an exit code. Imports no torch by itself."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .pipelines.errors import ConfigError, FastsslError, unknown

COMMANDS: dict[str, str] = {
    "train": "train a classifier from a few labels and many unlabelled samples",
    "sweep": "run a grid of methods, settings and seeds, and make one table of it",
    "eval": "judge a finished run on test images or texts",
    "predict": "label new images or texts with a finished run",
    "pseudolabel": "label a set by class names or by a finished run, for --foundation-labels",
    "export": "write a run's network as files that timm, open_clip, transformers or torch load",
    "data": "draw a contact sheet of views, or open every image or text of a set and count",
    "methods": "list the methods, or show one with its options",
    "presets": "list the published settings, or show one with its source",
    "doctor": "say what this machine has and lacks",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one sentence, nearest names, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        parsed, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                flags = [flag for action in self._active(args)._actions for flag in action.option_strings]
                flag = word.split("=")[0]
                near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
                raise ConfigError(unknown("flag", flag, flags) if near else f"unknown flag '{flag}'; see {self.prog} --help")
            raise ConfigError(f"unexpected argument '{word}'; see {self.prog} --help")
        return parsed

    def _active(self, args: Sequence[str] | None) -> argparse.ArgumentParser:
        """The sub-parser of the command that is being given, for its flags' names."""
        words = list(sys.argv[1:] if args is None else args)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word in words:
                    if word in action.choices:
                        return action.choices[word]
        return self


def parser() -> Parser:
    """The whole command line. Light: a command's heavy modules are imported when it runs."""
    top = Parser(prog="fastssl", description="Train classifiers of images and texts from a few labels and many unlabelled samples.")
    top.add_argument("--version", action="version", version=f"fastssl {__version__}")
    subs = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        sub = subs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
        importlib.import_module(f".commands.{name}", __package__).add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        top = parser()
        args = top.parse_args(argv)
        if args.command is None:
            top.print_help()
            return 2
        return importlib.import_module(f".commands.{args.command}", __package__).run(args)
    except FastsslError as error:
        print(f"fastssl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fastssl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"fastssl: no space left on the disk ({error.filename or 'while writing'}); free some, then --resume", file=sys.stderr)
            return 7
        return unexpected(error)
    except MemoryError:
        print("fastssl: out of memory; take a smaller --batch-size or --ratio", file=sys.stderr)
        return 7
    except Exception as error:
        # torch's CPU allocator raises a bare RuntimeError, its CUDA one a class of its own.
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            print("fastssl: out of memory; take a smaller --batch-size or --ratio", file=sys.stderr)
            return 7
        return unexpected(error)


def unexpected(error: Exception) -> int:
    """Saves the traceback and says where; exit 1."""
    with tempfile.NamedTemporaryFile("w", prefix="fastssl-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    print(f"fastssl: unexpected {type(error).__name__}: {error}; the traceback is in {file.name}", file=sys.stderr)
    return 1
