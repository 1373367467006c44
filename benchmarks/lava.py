"""How fast does the real Lava runtime run our networks, and where does the time go?

    python -m benchmarks.lava
    python -m benchmarks.lava --networks 12x768 --rounds 1
    python -m benchmarks.lava --bundle recipes/research/reviews_long.zip --file recipes/data/reviews/validation.tsv

Every *way* of running a network is started in a fresh process of its own, measured and ended; then comes the next. That
is a round, and medians are taken over rounds (ratios: of the ratios of each round). Ways:

first version    of the Lava target, from the history of the repository: each process of the plan runs alone
process, layer, core
                 today's: the groupings of `targets/lava/grouping.py`, in the real runtime
inline           the same ProcessModels as "layer", called one after another in one process

Columns of the first table:

processes        of the operating system, all that run then: the host's, Lava's own, the groups'
start            seconds in a fresh process from opening the file of the graph to the logits of the first sentence:
                 reading, lowering, importing Lava, compiling, starting processes, one sentence. Not in it: the start
                 of Python, the import of numpy, and texts
ms a step        of all sentences as one batch (`run`): T steps for each, and those in which the network runs empty
times first      steps a second, as a multiple of the first version's
stream           sentences a second while the network is full, from one stream of small batches
run of 1         the same where each sentence is a batch of its own and the network runs empty after each
memory           the most that all these processes ever held together from the start to the first logits (PSS)

The second table splits the time of a step, in ms of one core:

total            ms a step x cores (for inline, which uses one: x 1)
arithmetic       what the parts of all processes compute, one after another in one process, without Lava, queues and
                 copies between processes
BLAS             the matrix products of that arithmetic alone: float32, the same shapes and rows, one thread
overhead         total - arithmetic: the runtime, copies, and cores that wait

Before anything is timed each way runs once, which is when processes and memory are counted. Exit code 1 where the
logits of any run differ from the reference's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import lava_worker
from benchmarks.lava_first import REVISIONS, extract_first
from benchmarks.lava_processes import family, shared_out_bytes
from benchmarks.lava_worker import FIRST, INLINE, PARTS, RESULT, STARTED, Result, Task, Took
from benchmarks.networks import full_batch, random_network
from benchmarks.sentences import activity_of
from benchmarks.timing import Usage, machine, table
from converters.bundle import read_bundle
from converters.execution import TokenBatch
from converters.graph import Attention, Graph, Synapses
from converters.serialise import graph_to_plain
from sim.reference import ReferenceEngine
from sim.rows import Row, open_rows
from spikebert.commands import CheckFailed, UserError, note, processors, run_command, write_json, write_output

ROOT = Path(__file__).parents[1]
TODAY = ("process", "layer", "core", INLINE)
TIMESTEPS, FIRING_RATE = 4, 0.15
STREAM_SIZE = 4  # sentences of a batch in a stream
SINGLES_PART = 8  # of all sentences one in so many is run alone
SAMPLE_SECONDS = 0.1  # between two looks at the memory
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RUN_WORKER = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True)
class Size:
    """Of a random network, and how many sentences it is given."""

    depth: int
    hidden: int
    heads: int
    n_max: int
    sentences: int


SIZES = {"2x128": Size(2, 128, 4, 32, 24), "6x384": Size(6, 384, 6, 32, 24), "12x768": Size(12, 768, 12, 64, 8)}


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with its sentences. `blocks`: layers of a transformer."""

    name: str
    graph: Graph
    batch: TokenBatch
    blocks: int


@dataclass
class Measured:
    """One way: what was counted before, and the results of the rounds."""

    processes: int
    memory_bytes: int
    rounds: list[Result] = field(default_factory=list)


def random_subject(name: str, sentences: int) -> Subject:
    """A network of SIZES."""
    size = SIZES[name]
    graph = random_network(size.depth, size.hidden, size.heads, size.n_max, TIMESTEPS, FIRING_RATE, one_threshold=True)
    return Subject(f"{name}, N = {size.n_max}", graph, full_batch(graph, sentences), size.depth)


def bundle_subject(folder: Path, file: Path, sentences: int) -> Subject:
    """The first sentences of a file."""
    bundle = read_bundle(folder)
    texts = [bundle.tokenise(row.text) for row in open_rows(file, bundle.labels).items if isinstance(row, Row)]
    blocks = sum(isinstance(node, Attention) for node in bundle.graph)
    return Subject(str(folder), bundle.graph, bundle.batch(texts[:sentences]), max(1, blocks))


def write_task_files(subject: Subject, folder: Path) -> None:
    """What `lava_worker.py` reads, in the layout of schema 1, which the first version knows: a byte for each weight."""
    plain = graph_to_plain(subject.graph)
    weights = plain.weights | {
        f"{node.name}.weight": node.weight for node in subject.graph if isinstance(node, Synapses)
    }
    (folder / "graph.json").write_text(json.dumps(plain.structure | {"schema": 1}))
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "encoder.npz", **plain.encoder)
    logits = ReferenceEngine(subject.graph).run(subject.batch).logits
    np.savez(folder / "sentences.npz", ids=subject.batch.ids, mask=subject.batch.mask, logits=logits)


@contextmanager
def worker(task: Task, folder: Path) -> Iterator[subprocess.Popen]:
    """The process of a task, in the tree of its code. It is ended where it has not ended itself."""
    file = folder / "task.json"
    file.write_text(json.dumps(asdict(task)))
    (folder / RESULT).unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_WORKER, lava_worker.__file__, str(file)],
        cwd=task.tree,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": task.tree},
        stdin=subprocess.PIPE,
        stdout=2,  # to standard error: what libraries print is no result
    )
    try:
        yield process
    finally:
        process.terminate()  # what it started ends with it
        process.wait()


def finish(process: subprocess.Popen, task: Task, folder: Path) -> Result:
    """Wait for a worker. Raises RuntimeError where it failed, CheckFailed where logits were wrong."""
    if code := process.wait():
        raise RuntimeError(f"'{task.way}' could not be measured: its process ended with code {code}, see above")
    fields = json.loads((folder / RESULT).read_text())
    took = {name: Took(**fields[name]) if fields[name] else None for name in ("whole", "stream")}
    result = Result(**(fields | took | {"single": [Took(**each) for each in fields["single"]]}))
    if result.wrong:
        raise CheckFailed(f"'{task.way}': the logits of {result.wrong} sentences differ from the reference's")
    return result


def count(task: Task, folder: Path) -> Measured:
    """Processes of a way, once the first logits are there, and the most memory until then."""
    (folder / STARTED).unlink(missing_ok=True)
    members, memory, started = [], 0, False
    with worker(replace(task, hold=True), folder) as process:
        while process.poll() is None and not started:
            started = (folder / STARTED).exists()  # looked at once more then
            members = family(process.pid)
            memory = max(memory, shared_out_bytes(members))
            time.sleep(SAMPLE_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        finish(process, task, folder)
    return Measured(len(members), memory)


def measure(subject: Subject, first: Path | None, cores: int, rounds: int) -> dict[str, Measured]:
    """By way. first: folder with the code of the first version, None where there is none."""
    trees = {FIRST: first} | dict.fromkeys((*TODAY, PARTS), ROOT)
    singles = max(1, len(subject.batch) // SINGLES_PART)
    tasks = [Task(str(tree), way, cores, singles, STREAM_SIZE, False) for way, tree in trees.items() if tree]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_task_files(subject, folder)
        measured = {}
        for task in tasks:
            note(f"  {task.way}: processes and memory ...")
            measured[task.way] = count(task, folder)
        for number in range(rounds):
            note(f"  round {number + 1} of {rounds} ...")
            for task in tasks if number % 2 == 0 else tasks[::-1]:  # so that a drift of the clock meets all alike
                with worker(task, folder) as process:
                    measured[task.way].rounds.append(finish(process, task, folder))
    return measured


def over_rounds(value: Callable[..., float], *ways: Measured) -> float:
    """The median of what `value` makes of the results of these ways, round by round."""
    return median(value(*results) for results in zip(*(way.rounds for way in ways)))


def step_ms(result: Result) -> float:
    """ms a step of all sentences as one batch."""
    assert result.whole is not None
    return 1000 * result.whole.seconds / result.whole.steps


def rate(took: Sequence[Took]) -> float:
    """Sentences a second."""
    return sum(each.sentences for each in took) / sum(each.seconds for each in took)


def steps_a_sentence(took: Sequence[Took]) -> float:
    return sum(each.steps for each in took) / sum(each.sentences for each in took)


def summarise(subject: Subject, measured: dict[str, Measured], cores: int) -> dict[str, dict[str, float | None]]:
    """The figures of both tables for each way but PARTS, by names that say their unit; None where there is none."""
    alone, first = measured[PARTS], measured.get(FIRST)

    def part_ms(result: Result, seconds: float | None) -> float:
        assert result.whole is not None and seconds is not None
        return 1000 * seconds / result.whole.steps

    def arithmetic_ms(result: Result) -> float:
        return part_ms(result, result.arithmetic_seconds)

    def blas_ms(result: Result) -> float:
        return part_ms(result, result.blas_seconds)

    found: dict[str, dict[str, float | None]] = {}
    for way, of in measured.items():
        if way == PARTS:
            continue
        busy = 1 if way == INLINE else cores
        streams = all(result.stream for result in of.rounds)
        found[way] = {
            "processes": of.processes,
            "processes_a_block": of.processes / subject.blocks,
            "start_seconds": over_rounds(lambda result: result.start_seconds, of),
            "step_ms": over_rounds(step_ms, of),
            "times_first": over_rounds(lambda a, b: step_ms(a) / step_ms(b), first, of) if first else None,
            "stream_sentences_a_second": over_rounds(lambda result: rate([result.stream]), of) if streams else None,
            "stream_steps_a_sentence": (
                over_rounds(lambda result: steps_a_sentence([result.stream]), of) if streams else None
            ),
            "single_sentences_a_second": over_rounds(lambda result: rate(result.single), of),
            "single_steps_a_sentence": over_rounds(lambda result: steps_a_sentence(result.single), of),
            "memory_bytes": of.memory_bytes,
            "total_core_ms": over_rounds(lambda result, busy=busy: busy * step_ms(result), of),
            "arithmetic_core_ms": over_rounds(arithmetic_ms, alone),
            "blas_core_ms": over_rounds(blas_ms, alone),
            "arithmetic_per_blas": over_rounds(lambda result: arithmetic_ms(result) / blas_ms(result), alone),
            "overhead_core_ms": over_rounds(lambda a, b, busy=busy: busy * step_ms(a) - arithmetic_ms(b), of, alone),
            "overhead_share": over_rounds(
                lambda a, b, busy=busy: 1 - arithmetic_ms(b) / (busy * step_ms(a)), of, alone
            ),
        }  # fmt: skip
    return found


def report(subject: Subject, found: dict[str, dict[str, float | None]], about: str) -> str:
    """Both tables of a network."""

    def cell(value: float | None, form: str = ".1f", unit: float = 1) -> str:
        return "-" if value is None else format(value / unit, form)

    header = ["", "processes", "a block", "start, s", "ms a step", "times first", "stream, sentences/s"]
    header += ["steps a sentence", "run of 1, sentences/s", "steps a sentence", "memory, MB"]
    rows = [
        [
            way,
            cell(of["processes"], ".0f"),
            cell(of["processes_a_block"]),
            cell(of["start_seconds"]),
            cell(of["step_ms"], ".2f"),
            cell(of["times_first"], ".2f"),
            cell(of["stream_sentences_a_second"], ".2f"),
            cell(of["stream_steps_a_sentence"], ".2f"),
            cell(of["single_sentences_a_second"], ".2f"),
            cell(of["single_steps_a_sentence"], ".2f"),
            cell(of["memory_bytes"], ",.0f", 1e6),
        ]
        for way, of in found.items()
    ]
    if FIRST not in found:
        rows.insert(0, [f"{FIRST}: not in this clone ({' and '.join(REVISIONS)}: git fetch --tags --unshallow)"])
        rows[0] += ["-"] * (len(header) - 1)
    split = [
        [
            way,
            cell(of["total_core_ms"], ".2f"),
            cell(of["arithmetic_core_ms"], ".2f"),
            cell(of["blas_core_ms"], ".2f"),
            cell(of["arithmetic_per_blas"], ".2f"),
            cell(of["overhead_core_ms"], ".2f"),
            cell(of["overhead_share"], ".0%"),
        ]
        for way, of in found.items()
    ]
    split_header = ["ms of one core", "total", "arithmetic", "BLAS", "arithmetic / BLAS", "overhead", "share"]
    return "\n".join([f"{subject.name}: {about}", "", table(header, rows), "", table(split_header, split), ""])


def measure_all(subjects: Sequence[Callable[[], Subject]], cores: int, rounds: int, as_json: bool) -> None:
    """Each network after the other; writes its tables, or with `as_json` one object at the end."""
    start, results = Usage.now(), []
    with TemporaryDirectory() as name:
        revision = extract_first(ROOT, Path(name))
        first = Path(name) if revision else None
        for make in subjects:
            subject = make()
            note(f"{subject.name} ...")
            firing = activity_of(subject.graph, [subject.batch]).total.rate
            found = summarise(subject, measure(subject, first, cores, rounds), cores)
            tokens = float(subject.batch.mask.sum(axis=1).mean())
            about = f"T = {subject.graph.timesteps}, {len(subject.batch)} sentences of {tokens:.1f} tokens, "
            about += f"firing rate {firing:.1%}; {cores} cores, {rounds} rounds, logits equal to the reference's"
            if not as_json:
                write_output(report(subject, found, about))
            results.append({"network": subject.name, "about": about, "first": revision, "ways": found})
    if as_json:
        write_json({"networks": results, "machine": machine(start)})
    else:
        write_output(machine(start))


def body(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lava", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", choices=SIZES, help="random ones, depth x features (default: 2x128 6x384)"
    )
    parser.add_argument("--bundle", type=Path, help="the network of a bundle, on the sentences of --file")
    parser.add_argument("--file", type=Path, help="sentences, as for spikebert-run")
    parser.add_argument("--sentences", type=int, help="so many (default: 24; 8 for 12x768)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=processors(), help="of this machine (default: all, %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments = parser.parse_args(argv)
    if (arguments.bundle is None) != (arguments.file is None):
        raise UserError("--bundle and --file belong together: a network and its sentences")
    if min(arguments.rounds, arguments.cores, arguments.sentences or 1) < 1:
        raise UserError("--rounds, --cores and --sentences must be 1 or more")
    names = arguments.networks or ([] if arguments.bundle else ["2x128", "6x384"])
    subjects = [partial(random_subject, name, arguments.sentences or SIZES[name].sentences) for name in names]
    if arguments.bundle:
        subjects.append(partial(bundle_subject, arguments.bundle, arguments.file, arguments.sentences or 24))
    measure_all(subjects, arguments.cores, arguments.rounds, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(body))
