"""`spikebert-train`: a recipe in, trained folders out."""

from __future__ import annotations

import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from spikebert.commands import OK, UserError, note, output_kept_clean, run_command, write_json
from spikebert.recorded_recipe import MANIFEST, check_sections, recorded_recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLE = """\
examples:
  spikebert-train --recipe reviews --out runs/reviews
  spikebert-train --recipe my.yaml --stage2.epochs 10 --student.layers 2
  spikebert-train --recipe my.yaml --until stage1                                   (later without it: it goes on)
  spikebert-train --recipe build/reviews --out runs/again                           (what a bundle was made by)
  torchrun --nproc_per_node 2 -m spikebert.train_command --recipe my.yaml           (two processes, CPU or GPUs)
  accelerate launch --num_processes 2 -m spikebert.train_command --recipe my.yaml   (the same, on GPUs)

A run that was stopped goes on where it was when the same command is given again, with any number of processes.
"""


def recipe_of(name: str) -> str:
    """What jsonargparse is given for a recipe: the path of a YAML file, or what a bundle records, as YAML."""
    if Path(name).is_dir() and _installed(name):  # a folder does not hide the recipe of its name
        if (Path(name) / MANIFEST).is_file():
            note(f"--recipe {name}: the installed recipe; that of the bundle beside you is {name}/{MANIFEST}")
        return str(recipe_path(name))
    return recorded_recipe(Path(name)) or str(recipe_path(name))


def _installed(name: str) -> Path | None:
    """The recipe of that name which is installed with spikebert; None where there is none, and of a path."""
    path = Path(str(resources.files("recipes") / f"{name}.yaml"))
    return path if name == Path(name).name and path.is_file() else None


def recipe_path(name: str) -> Path:
    """A recipe file, or the name of one that is installed with spikebert. Raises UserError where it is no YAML."""
    path = Path(name)
    packaged = _installed(name)
    if not path.is_file() and packaged:
        return packaged
    if not path.exists():
        entries = (entry.name for entry in resources.files("recipes").iterdir())
        known = sorted(entry.removesuffix(".yaml") for entry in entries if entry.endswith(".yaml"))
        raise UserError(f"--recipe {name}: no such file; installed recipes: {', '.join(known)}")
    check_yaml(path)
    return path


def check_yaml(path: Path) -> None:
    """Raises UserError, with the line, where a recipe file cannot be read as YAML of fields and values."""
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}; give a YAML file or a bundle") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {path}: not YAML: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"--recipe {path}: holds no fields; a recipe has lines such as 'out: runs/reviews'")
    check_sections(content, path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def make_parser() -> ArgumentParser:
    import docstring_parser  # noqa: F401  # jsonargparse needs it for what is set below
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    from spikebert.recipe import STAGES, Recipe

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Tells types and defaults, and leaves the examples as they are."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the words below a field of a recipe are its help
    parser = ArgumentParser(
        prog="spikebert-train",
        description="Teach a spiking BERT: teacher -> stage 1 -> stage 2 -> quantise.",
        epilog=EXAMPLE,
        formatter_class=Formatter,
        usage="spikebert-train --recipe RECIPE [--FIELD VALUE ...] [--until STAGE] [--json] [--debug]",
        exit_on_error=False,  # its own way prints all flags first
    )
    parser.add_argument("--recipe", action="config", help="YAML file, name of an installed recipe, or bundle")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to train")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(Recipe, None)
    return parser


def quiet_libraries() -> None:
    """Keep loading bars and notices of libraries from hiding our own progress."""
    import logging
    import warnings

    import torch  # noqa: F401  # first: without it transformers would print a line of its own
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|accelerate")


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Flags and recipe; flags count, wherever they stand, and of several recipes the later.

    Raises UserError for what is unknown, missing or of a wrong type.
    """
    recipes, flags, words = [], [], iter(argv)
    for word in words:
        name = next(words, None) if word == "--recipe" else word.removeprefix("--recipe=")
        if name is None or name == word:
            flags.append(word)
        else:
            recipes.append(name)
    try:
        return parser.parse_args([*(f"--recipe={recipe_of(name)}" for name in recipes), *flags])
    except ArgumentError as error:
        where = f" (recipe {', '.join(recipes)})" if recipes else ""
        raise UserError(f"{_one_line(error)}{where}; spikebert-train --help lists all options") from None


def train(argv: Sequence[str]) -> int:
    parser = make_parser()
    parsed = parse(parser, argv)
    renamed = hasattr(parser, "instantiate")  # in jsonargparse 4.49
    values = parser.instantiate(parsed) if renamed else parser.instantiate_classes(parsed)
    with output_kept_clean():  # libraries greet on standard output
        quiet_libraries()
        from spikebert.recipe import Recipe
        from spikebert.stages import Training

        recipe = Recipe(**{field.name: getattr(values, field.name) for field in fields(Recipe)})
        training = Training(recipe)
        results = training.run(parsed.until)
        training.accelerator.end_training()
    if parsed.json and training.accelerator.is_main_process:
        write_json(results)
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(train, argv)


if __name__ == "__main__":
    sys.exit(main())
