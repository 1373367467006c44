"""`spikebert-train`: a recipe in, trained folders out."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from spikebert.commands import OK, UserError, output_kept_clean, run_command, write_json

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = """\
examples:
  spikebert-train --recipe reviews --out runs/reviews
  spikebert-train --recipe my.yaml --stage2.epochs 10 --student.layers 2
  accelerate launch -m spikebert.train_command --recipe my.yaml

A run that was stopped goes on where it was when the same command is given again.
"""


def recipe_path(name: str) -> Path:
    """A recipe file, or the name of one that is installed with spikebert."""
    path = Path(name)
    packaged = resources.files("recipes") / f"{name}.yaml"
    if not path.exists() and packaged.is_file():
        return Path(str(packaged))
    if not path.exists():
        known = sorted(entry.name.removesuffix(".yaml") for entry in resources.files("recipes").iterdir()
                       if entry.name.endswith(".yaml"))  # fmt: skip
        raise UserError(f"--recipe {name}: no such file; installed recipes: {', '.join(known)}")
    return path


def make_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from spikebert.recipe import Recipe

    parser = ArgumentParser(
        prog="spikebert-train",
        description="Teach a spiking BERT: teacher -> stage 1 -> stage 2 -> quantise.",
        epilog=EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
        exit_on_error=True,
    )
    parser.add_argument("--recipe", action="config", help="YAML file, or the name of an installed recipe")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(Recipe, None)
    return parser


def quiet_libraries() -> None:
    """Keep loading bars and notices of libraries from hiding our own progress."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")


def train(argv: Sequence[str]) -> int:
    arguments = list(argv)
    for place, word in enumerate(arguments):
        if word == "--recipe" and place + 1 < len(arguments):
            arguments[place + 1] = str(recipe_path(arguments[place + 1]))
        elif word.startswith("--recipe="):
            arguments[place] = f"--recipe={recipe_path(word.removeprefix('--recipe='))}"
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    values = parser.instantiate_classes(parsed)
    with output_kept_clean():  # libraries greet on standard output
        quiet_libraries()
        from spikebert.recipe import Recipe
        from spikebert.stages import Training

        recipe = Recipe(**{field.name: getattr(values, field.name) for field in fields(Recipe)})
        results = Training(recipe).run()
    if parsed.json:
        write_json(results)
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(train, argv)


if __name__ == "__main__":
    sys.exit(main())
