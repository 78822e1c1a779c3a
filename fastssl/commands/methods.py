"""`fastssl methods` and `fastssl methods show NAME`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json

from ..pipelines.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", help="'show' to see one method")
    parser.add_argument("name", nargs="?", help="the method to show")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace) -> int:
    from .. import methods

    if args.what is None:
        entries = {name: methods.find(name) for name in methods.METHODS}
        if args.json:
            print(json.dumps([{"name": n, "summary": k.summary, "paper": k.paper} for n, k in entries.items()]))
        else:
            width = max(map(len, entries))
            for name, kind in entries.items():
                print(f"{name:<{width}}  {kind.summary} ({kind.paper})")
        return 0
    if args.what != "show" or args.name is None:
        raise ConfigError(f"methods takes nothing, or 'show NAME', got '{' '.join(filter(None, (args.what, args.name)))}'")
    kind = methods.find(args.name)
    fields = [
        {
            "option": f"method.{f.name}",
            "default": f.default,
            "meaning": f.metadata["help"],
            "choices": list(f.metadata["choices"]),
            "source": f.metadata["source"],
        }
        for f in dataclasses.fields(kind.Config)
    ]
    about = inspect.cleandoc(kind.__doc__ or "")
    if args.json:
        print(json.dumps({"name": args.name, "summary": kind.summary, "paper": kind.paper, "about": about, "options": fields}))
        return 0
    print(f"{args.name}: {kind.summary}\n{kind.paper}\n")
    if about:
        print(f"{about}\n")
    labelled, unlabelled = (", ".join(views) or "none" for views in (kind.views.labelled, kind.views.unlabelled))
    print(f"views: labelled {labelled}; unlabelled {unlabelled}\n")
    for field in fields:
        choices = f" [{' | '.join(field['choices'])}]" if field["choices"] else ""
        source = f" ({field['source']})" if field["source"] else ""
        print(f"  --set {field['option']}={field['default']}{choices}\n      {field['meaning']}{source}")
    return 0
