"""Engines by name: the registry behind `spikebert-run --engine NAME`.

An engine is an entry point of the group `spikebert.engines` that names an `EngineFactory`. It is loaded only when
asked for, so a machine without torch or Lava never imports them.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from converters.execution import Engine, EngineFactory, EngineOptions
from converters.graph import Graph
from sim.reference import ReferenceEngine
from spikebert.commands import UserError, extra_of, missing_extra

GROUP = "spikebert.engines"
LAVA_ENGINES = ("lava", "lava-inline")  # the engines that EngineOptions.attention and stock_models are for
BUNDLE_ENGINES = ("fast", "lava", "lava-inline", "loihi2", "netx", "reference")  # they run that alone, no model
EXIT_ENGINES = ("fast", "reference", "torch")  # those that EngineOptions.early_exit is for


def open_reference(graph: Graph, options: EngineOptions) -> Engine:
    """The numpy reference interpreter. Of the options it needs the early exit alone."""
    return ReferenceEngine(graph, options.early_exit)


def engine_names() -> tuple[str, ...]:
    """The names of all registered engines, sorted; their libraries may or may not be installed."""
    return tuple(sorted(_registered()))


def holds_values(name: str) -> bool:
    """Whether the values of all neurons are held, for activity to be counted from them: `fast` counts on the way."""
    return name != "fast"


def require_engine(name: str) -> None:
    """Raises UserError for a name that is not registered: for who needs an engine at the end of long work."""
    if name not in _registered():
        known = ", ".join(engine_names()) or "none: install spikebert with pip"
        raise UserError(f"there is no engine '{name}'. Engines: {known}")


def open_engine(name: str, graph: Graph, options: EngineOptions | None = None) -> Engine:
    """Load and open an engine; whoever opens it closes it.

    Raises UserError for a name that is not registered, for options of Lava's given to another engine, a model to one of
    `BUNDLE_ENGINES`, and for an early exit that the engine or the graph cannot do; MissingExtra where its library is
    not installed.
    """
    options = options or EngineOptions()
    require_engine(name)
    _require_options_fit(name, options)
    _require_exit_fits(name, graph, options)
    try:
        factory: EngineFactory = _registered()[name].load()
        return factory(graph, options)
    except ModuleNotFoundError as error:
        if extra_of(error.name or "") is None:
            raise
        raise missing_extra(error.name or "") from error


def _require_options_fit(name: str, options: EngineOptions) -> None:
    if options.model is not None and name in BUNDLE_ENGINES:
        raise UserError(f"--model: engine '{name}' runs the bundle, no model. Leave it out, or take --engine torch")
    flags = ["--attention stock"] if options.attention != "process" else []
    flags += ["--stock-models"] if options.stock_models else []
    if flags and name not in LAVA_ENGINES:
        raise UserError(
            f"{' '.join(flags)}: engine '{name}' does not run on Lava. Leave it out, or take --engine "
            f"{' or '.join(LAVA_ENGINES)}"
        )


def _require_exit_fits(name: str, graph: Graph, options: EngineOptions) -> None:
    if options.early_exit is None:
        return
    if name not in EXIT_ENGINES:
        raise UserError(
            f"early exit: engine '{name}' cannot stop a sample: on a machine the next one comes T timesteps later, "
            f"whatever the class of this one. Take --engine {', '.join(EXIT_ENGINES[:-1])} or {EXIT_ENGINES[-1]}; "
            "spikebert-export --timesteps makes a network of fewer timesteps"
        )
    try:
        options.early_exit.checks(graph)
    except ValueError as error:
        raise UserError(f"early exit: {error}") from None


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
