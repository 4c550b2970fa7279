"""The command line. `main` is the entry point; a mistake of the user's is one line and exit code 2.

What needs torch is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedvpa.apps.stopping import Interrupted
from fedvpa.config import METHODS, PEOPLE_SOURCES, ExperimentConfig, absolute_paths, describe_keys, load_config
from fedvpa.errors import MissingExtra, UserError

PLACES = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
"""What is wrong with a place that somebody names; anything else is a fault of ours."""
VARIABLES = ("FEDVPA_CACHE", "FEDVPA_HH_RLHF", "FEDVPA_TOKEN")
FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="fedvpa",
    help="One preference selector for users who disagree, trained federated.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start with  [bold]fedvpa doctor[/bold]  and  [bold]fedvpa compare configs/synthetic.yaml[/bold]",
)

Config = Annotated[
    Path, typer.Argument(help="A YAML file, or the name of one that is shipped (synthetic, jsonl).", metavar="CONFIG")
]
ConfigOrTable = Annotated[
    Path,
    typer.Argument(
        help="A YAML file or the name of a shipped one (synthetic, jsonl); or a table of preferences.", metavar="CONFIG"
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values that replace the file's, as key=value.", metavar="KEY=VALUE")
]
Run = Annotated[Path, typer.Argument(help="The folder of a run of `fedvpa train`.", metavar="RUN")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; by default under runs/.", show_default=False)]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the tables as JSON.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in the folder.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 success, 1 some cells of a comparison failed, 2 the user's mistake or a full disk, 130 and 143 SIGINT and SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that the locale does not have is shown by its number
            stream.reconfigure(errors="backslashreplace")
    try:
        check_environment(os.environ)
        code = app(given or ["--help"], prog_name="fedvpa", standalone_mode=False)
        if code == 128 + signal.SIGINT:
            return _fail("interrupted; nothing is half-written, run the same command again", code)
        return code if isinstance(code, int) else 0
    except UserError as e:
        return _fail(str(e), 2)
    except click.ClickException as e:
        return _fail(f"{e.format_message()}; see `fedvpa {given[0] if given else ''} --help`", 2)
    except OSError as e:
        if e.errno == errno.EPIPE:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the rest
            return 1
        if e.errno in PLACES and e.filename:
            return _fail(f"{e.filename}: cannot be used ({e.strerror}); check the path", 2)
        if e.errno not in FULL:
            raise
        place = f"{e.filename}: " if e.filename else ""
        return _fail(f"{place}the disk is full; free some space and go on with --resume", 2)
    except Interrupted as e:
        return _fail(str(e), 128 + e.signum)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises `UserError` for a variable that looks like one of ours and is none: nobody would look at it."""
    for name in sorted(environment):
        if name.startswith("FEDVPA_") and name not in (*VARIABLES, "FEDVPA_SHARED"):  # that one is the tests'
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"unset it; known are {', '.join(VARIABLES)}"
            raise UserError("unknown environment variable", remedy, field=name)


def _fail(message: str, code: int) -> int:
    text = " ".join(message.split("\n"))
    print(text if code > 2 else f"error: {text}", file=sys.stderr)
    return code


def _console() -> Console:
    """Progress and remarks go to stderr; only results go to stdout."""
    return Console(stderr=True, markup=False, emoji=False)


def _stdout(soft_wrap: bool = False) -> Console:
    """For results. Paths and names are printed as they are: brackets and colons in them are no markup."""
    return Console(soft_wrap=soft_wrap, markup=False, emoji=False)


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  [bold]{line}[/bold]" for line in lines)


def _out(out: Path | None, config: Path, what: str) -> Path:
    if out is not None:
        return out
    path = Path("runs") / f"{config.stem}-{what}"
    _console().print(f"writing to {path} (change it with --out)", highlight=False, soft_wrap=True)
    return path


def _with_people(settings: ExperimentConfig) -> ExperimentConfig:
    """The configuration with what depends on the people's table decided; says which columns were taken for what."""
    if settings.data.name not in PEOPLE_SOURCES:
        return settings
    from fedvpa.preferences.sources import with_people

    found, lines = with_people(settings)
    for line in lines:
        _console().print(line, highlight=False, soft_wrap=True, markup=False)
    return found


def _show(results: dict[str, Any], config: ExperimentConfig, out: Path | None, as_json: Path | None) -> None:
    """Prints the tables and the path of the report; writes them as JSON where wanted."""
    from fedvpa.reporting.tables import plain_tables, print_tables

    size = config.federation.context_pairs
    print_tables(results, _stdout(), size)
    if as_json is not None:
        _write_json(as_json, plain_tables(results, size))
    if out is not None:
        _stdout(soft_wrap=True).print(f"Report: {out / 'report.html'}", highlight=False)


def _write_lines(text: str) -> None:
    """JSON Lines to the standard output, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _say_cut(selector: Any) -> None:
    """Says of how many texts not everything was read, where there are any."""
    seen = selector.backbone.seen
    if seen["cut"]:
        text = f"{seen['cut']} of {seen['texts']} texts were cut (backbone.max_tokens, or the encoder's limit)"
        text += f"; what is read of {seen['equal']} pairs is the same on both sides" if seen["equal"] else ""
        _console().print(text, highlight=False, soft_wrap=True, markup=False)


def _write_json(path: Path, tree: Any) -> None:
    from fedvpa.evaluation.result_files import plain, write_text

    write_text(path, json.dumps(plain(tree), indent=1, ensure_ascii=False) + "\n")


@app.command(
    epilog=_examples(
        "fedvpa train configs/synthetic.yaml --out runs/first",
        "fedvpa train pairs.csv --out runs/mine",
        "fedvpa train jsonl data.path=pairs.jsonl --out runs/pairs",
        "fedvpa train configs/hh-attributes-2.yaml method.name=fedvpl federation.rounds=50 --out runs/vpl",
        "fedvpa train configs/synthetic.yaml --out runs/first --resume",
    )
)
def train(
    config: ConfigOrTable,
    overrides: Overrides = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: Json = None,
) -> None:
    """Train one method with one seed, measure it, and write a run folder with the selector and a report.

    Ctrl-C finishes the round and saves; --resume then goes on, to the same result (also after kill -9).
    """
    settings = _with_people(absolute_paths(load_config(config, overrides or ())))
    settings = settings.for_method(settings.method.name)
    folder = _out(out, config, settings.method.name)
    from fedvpa.apps.runs import check_folder
    from fedvpa.apps.training import train as run

    _show(
        run(settings, check_folder(folder, settings, "train", overwrite, resume), _console()),
        settings,
        folder,
        as_json,
    )


@app.command(
    epilog=_examples(
        "fedvpa compare configs/synthetic.yaml",
        "fedvpa compare configs/hh-attributes-2.yaml --methods fedvpa-gp,fedvpl,fedbt,oracle --seeds 5 --out runs/hh2",
        "fedvpa compare configs/hh-attributes-2.yaml --seeds 5 --out runs/hh2 --resume",
    )
)
def compare(
    config: ConfigOrTable,
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option(help=f"Methods, with commas between: {', '.join(METHODS)}.")
    ] = "fedvpa-laplace,fedvpa-gp,fedvpl,fedbt,local,oracle",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from `seed` on.")] = 1,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: Json = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Cells at a time; by default one per core.", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each; results depend on it (rounding).")] = 1,
) -> None:
    """Train several methods with several seeds on the same data, and compare them with intervals.

    Each method and seed that is finished is kept, and --resume never runs it again.
    """
    settings = _with_people(absolute_paths(load_config(config, overrides or ())))
    from fedvpa.apps import comparing
    from fedvpa.apps.executor import explain
    from fedvpa.apps.runs import check_folder

    names = comparing.parse_methods(methods)
    folder = _out(out, config, "compare")
    run = check_folder(folder, settings, "compare", overwrite, resume)
    outcome = comparing.compare(settings, names, seeds, run, _console(), jobs, threads)
    _show(outcome.results, settings, folder, as_json)
    for cell, error in outcome.failures.items():
        _fail(f"{cell}: {explain(error)}", 1)
    if outcome.failures:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "fedvpa demo configs/polis.yaml",
        "fedvpa demo configs/polis.yaml data.path=FOLDER --out runs/consultation",
        "fedvpa demo votes.csv --methods fedvpl,fedvpa-gp,local --out runs/votes",
    )
)
def demo(
    config: ConfigOrTable,
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas between, besides fedbt and fedvpa-laplace.")
    ] = "lore",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; by default one per core.", show_default=False)
    ] = None,
) -> None:
    """Compare methods on people's votes or ratings, known and new items; the table, its verdict, and a pair that flips.

    What is finished in the folder is not run again.
    """
    settings = absolute_paths(load_config(config, overrides or ()))
    folder = _out(out, config, "demo")
    from fedvpa.apps.comparing import parse_methods
    from fedvpa.apps.demo import demo as run
    from fedvpa.reporting.demo_text import print_demo

    found = run(settings, folder, _console(), parse_methods(methods), overwrite, jobs)
    print_demo(found, _stdout())
    if as_json is not None:
        _write_json(as_json, found)


@app.command(
    epilog=_examples(
        "fedvpa study configs/studies/02-collapse.yaml --plan",
        "fedvpa study configs/studies/02-collapse.yaml --quick --out out/quick/collapse",
        "fedvpa study configs/studies/02-collapse.yaml --out out/studies/collapse",
    )
)
def study(
    study: Annotated[
        Path, typer.Argument(help="A YAML file, or the name of a shipped one (02-collapse).", metavar="STUDY")
    ],
    overrides: Overrides = None,
    out: Out = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Where finished cells are kept, for all studies; by default beside the study's folder."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds, instead of the study's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The reduced study.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the cells and the estimate; run nothing.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; by default one per core.", show_default=False)
    ] = None,
    as_json: Json = None,
) -> None:
    """Run a grid of methods, settings and seeds; write one table, the figures, and which claims hold.

    A finished cell is never run again, whatever study it was run for; after an interruption run the same command again.
    """
    from fedvpa.apps import studying
    from fedvpa.apps.executor import explain
    from fedvpa.reporting.study_tables import print_study

    folder = out or Path("runs") / f"{study.stem}{'-quick' if quick else ''}"
    work = studying.plan(study, overrides or (), cells or folder.parent / "cells", quick, seeds, jobs)
    studying.announce(work, _stdout() if plan else _console(), every_cell=plan)
    if plan:
        return
    summary, failures = studying.study(work, folder, _console())
    print_study(summary, _stdout())
    _stdout(soft_wrap=True).print(f"Study: {folder / studying.SUMMARY}", highlight=False)
    if as_json is not None:
        _write_json(as_json, summary)
    for task, error in failures.items():
        _fail(f"{task.label}: {explain(error)}", 1)
    if failures:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "fedvpa evaluate runs/first", "fedvpa evaluate runs/first data.name=jsonl data.path=ours.jsonl --json t.json"
    )
)
def evaluate(run: Run, overrides: Overrides = None, as_json: Json = None) -> None:
    """Measure a trained selector, on its own data or on others; nothing is trained."""
    from fedvpa.apps import using
    from fedvpa.apps.runs import read_config
    from fedvpa.selector import Selector

    settings = using.evaluation_config(run, overrides or ())
    results = using.evaluate(Selector.from_pretrained(run, cache=True), settings, read_config(run))
    _show(results, settings, None, as_json)


@app.command(
    epilog=_examples(
        "fedvpa personalize runs/first --examples me.jsonl --out me.json",
        "fedvpa personalize runs/first --examples votes.csv --out me.json",
        "fedvpa personalize runs/first --user me.json --examples more.csv --out me.json",
    )
)
def personalize(
    run: Run,
    examples: Annotated[
        Path,
        typer.Option(
            help="A table of the user's choices (prompt, chosen, rejected), votes (prompt, text, label) or ratings "
            "(prompt, text, rating).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The user's file.", show_default=False)],
    inference: Annotated[
        str | None, typer.Option(help="How, as the method names it; by default what validation chose.")
    ] = None,
    user: Annotated[
        Path | None, typer.Option(help="The user's file so far, to which the examples are added (fedvpa-laplace).")
    ] = None,
) -> None:
    """Infer a user from a few judgements, without training; or add judgements to a user."""
    from fedvpa.apps import using
    from fedvpa.selector import Selector
    from fedvpa.user import User

    before = None if user is None else User.load(user)
    selector = Selector.from_pretrained(run, cache=True)
    found = using.personalize(selector, examples, inference, before)
    _say_cut(selector)
    found.save(out)
    what = "pairs" if found.posterior is None else "judgements"
    _stdout(soft_wrap=True).print(f"{out}: inferred from {found.pairs} {what} ({found.inference})", highlight=False)


@app.command(
    epilog=_examples(
        "fedvpa ask runs/first --pool statements.csv --out me.json",
        "fedvpa ask runs/first --pool statements.csv --user me.json --questions 5 --out me.json",
        "fedvpa ask runs/first --pool statements.csv --questions 8 --json questionnaire.json",
    )
)
def ask(
    run: Run,
    pool: Annotated[
        Path,
        typer.Option(
            help="A table of what may be asked: prompt, text (yes or no), or prompt, a, b (which one).",
            show_default=False,
        ),
    ],
    user: Annotated[
        Path | None, typer.Option(help="A file of `fedvpa personalize`; without one, nobody in particular.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The user's file, with the answers.", show_default=False)] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Ask nobody; write the questions as JSON.", show_default=False)
    ] = None,
) -> None:
    """Ask the questions whose answers tell most about a user, each chosen after the answers before it.

    With --json, or without a terminal, nobody is asked: the first questions are printed, the same for everybody.
    """
    from fedvpa.apps import asking
    from fedvpa.preferences.examples import read_questions
    from fedvpa.selector import Selector
    from fedvpa.user import User

    selector, asked = Selector.from_pretrained(run, cache=True), read_questions(pool)
    known = None if user is None else User.load(user)
    if as_json is not None or not sys.stdin.isatty():
        if out is not None:
            raise UserError("there are no answers to write", "ask in a terminal, without --json", field="--out")
        found = asking.questionnaire(selector, known, asked, questions)
        if as_json is None:
            _write_lines("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        else:
            _write_json(as_json, found)
        return
    answered = asking.interview(selector, known, asked, questions, input, partial(print, file=sys.stderr))
    console = _stdout(soft_wrap=True)
    if out is None:
        console.print(f"{answered.pairs} answers; keep them with --out", highlight=False)
        return
    answered.save(out)
    console.print(f"{out}: inferred from {answered.pairs} judgements ({answered.inference})", highlight=False)


@app.command(
    epilog=_examples(
        "fedvpa score runs/first --user me.json --pairs pairs.jsonl",
        "fedvpa score runs/first --user me.json --pairs pairs.jsonl --out scored.jsonl",
    )
)
def score(
    run: Run,
    pairs: Annotated[Path, typer.Option(help="JSON Lines with prompt, a, b.", show_default=False)],
    user: Annotated[
        Path | None, typer.Option(help="A file of `fedvpa personalize`; without one, nobody in particular.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; by default to the standard output.")] = None,
) -> None:
    """Add to each pair `p_a`, the probability that the user prefers a to b."""
    from fedvpa.apps import using
    from fedvpa.evaluation.result_files import write_text
    from fedvpa.selector import Selector
    from fedvpa.user import User

    known = None if user is None else User.load(user)
    selector = Selector.from_pretrained(run, cache=True)
    text = using.score(selector, known, pairs)
    _say_cut(selector)
    if out is None:
        _write_lines(text)
    else:
        write_text(out, text)


@app.command(epilog=_examples("fedvpa encode configs/hh-attributes-2.yaml", "fedvpa encode mine.yaml backbone.layer=8"))
def encode(config: Config, overrides: Overrides = None, as_json: Json = None) -> None:
    """Compute the features that a configuration needs, ahead of time, into the cache."""
    settings = load_config(config, overrides or ())
    from fedvpa.evaluation.encoding import encode as run
    from fedvpa.preferences.sources import load_preferences

    report = run(settings, load_preferences(settings)).report
    figures = {
        "pairs": report.count,
        "computed now": report.computed,
        "from the cache": report.cached,
        "cut (backbone.max_tokens)": report.truncated,
        "cut at the end (the encoder's limit)": report.shortened,
        "equal after the cut": report.equal,
        "damaged, computed again": report.corrupted,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 2),
        "tokens per second": round(report.tokens / report.seconds) if report.computed else None,
    }
    table = Table("figure", "value", title=f"Features of {settings.data.name}", title_justify="left")
    for name, value in figures.items():
        table.add_row(name, "–" if value is None else f"{value:,}")
    _stdout().print(table)
    if as_json is not None:
        _write_json(as_json, {**figures, "notes": list(report.notes)})


@app.command(
    epilog=_examples("fedvpa config configs/synthetic.yaml", "fedvpa config configs/synthetic.yaml method.beta=0.1")
)
def config(
    config: Annotated[Path | None, typer.Argument(help="A YAML file.", metavar="CONFIG", show_default=False)] = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its default and meaning instead.")] = False,
    as_json: Json = None,
) -> None:
    """Print a configuration with every default filled in; the output is a configuration again."""
    if keys:
        table = Table("key", "default", "meaning", title="Configuration", title_justify="left")
        for key, default, meaning in describe_keys():
            table.add_row(Text(key), Text(default), Text(meaning))
        _stdout().print(table)
        rows = [dict(zip(("key", "default", "meaning"), row, strict=True)) for row in describe_keys()]
        if as_json is not None:
            _write_json(as_json, rows)
        return
    if config is None:
        raise UserError("no configuration given", "name a file, or list the keys with --keys", field="CONFIG")
    settings = load_config(config, overrides or ())
    sys.stdout.write(settings.to_yaml())
    if as_json is not None:
        _write_json(as_json, settings.model_dump(mode="json"))


@app.command(epilog=_examples("fedvpa example-data example", "fedvpa example-data example --users 100 --pairs 24"))
def example_data(
    folder: Annotated[Path, typer.Argument(help="Where to; it is made if it is missing.", metavar="DIR")],
    users: Annotated[int, typer.Option(min=5, max=1000, help="Users, of four groups that disagree.")] = 40,
    pairs: Annotated[int, typer.Option(min=2, max=200, help="Labelled pairs of each.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write a small data set in the layout of your own: pairs.jsonl, ada.jsonl (a new user) and candidates.jsonl."""
    from fedvpa.apps import example_data as data

    files = data.write(folder, users, pairs, overwrite)
    _stdout(soft_wrap=True).print("\n".join(map(str, files)), highlight=False)


@app.command(epilog=_examples("fedvpa doctor", "fedvpa doctor --json doctor.json"))
def doctor(as_json: Json = None) -> None:
    """Show what is installed, found and missing, with the remedy. Exit code 1 if the default cannot run."""
    from fedvpa.apps.doctor import examine

    findings = examine()
    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    table = Table("what", "state", "found", "remedy")
    for f in findings:
        table.add_row(Text(f.name), Text(f.state, style=colours[f.state]), Text(f.found), Text(f.remedy))
    _stdout().print(table)
    if as_json is not None:
        _write_json(as_json, [f._asdict() for f in findings])
    if any(f.state == "missing" for f in findings):
        raise typer.Exit(1)


deploying = typer.Typer(help="Train on data that stays where it is, over a network.")
app.add_typer(deploying, name="deploy")


@deploying.command(
    epilog=_examples(
        "fedvpa deploy init trial --nodes 3",
        "fedvpa deploy init ours --nodes 12 --host ml.example.org --config configs/jsonl.yaml",
    )
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
    nodes: Annotated[int, typer.Option(min=1, max=10_000, help="Data holders (SuperNodes).")] = 3,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the server; may be given again.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 8000,
    config: Annotated[Path | None, typer.Option(help="The experiment; by default a short one.")] = None,
) -> None:
    """Write a folder with all that a server and its data holders need: app, certificates, keys and commands."""
    with _extra("flower"):
        from fedvpa.apps.deploy import init as write
    write(folder, nodes, tuple(host or ("localhost",)), port, config)
    _stdout(soft_wrap=True).print(f"{folder / 'README.md'} says how to go on", highlight=False)


@app.command(
    epilog=_examples(
        "fedvpa align runs/hh4 --config configs/align-attributes.yaml --out runs/aligned",
        "fedvpa align runs/hh4 --baseline runs/hh4-fedbt training.epochs=2 --out runs/both",
    )
)
def align(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="Folder of the policy.", show_default=False)],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file, or the name of a shipped one (align-attributes).")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A run without a latent, whose policy comes into the same table.")
    ] = None,
) -> None:
    """Align a language model with a run's selector: one policy that switches with the latent.

    After an interruption (also kill -9) run the same command again.
    """
    with _extra("align"):
        from fedvpa.alignment.config import load_alignment
        from fedvpa.apps.aligning import align as work
    from fedvpa.reporting.alignment_page import print_alignment

    result = work(run, out, load_alignment(config, overrides or ()), _console(), baseline)
    print_alignment(result, _stdout())
    _stdout(soft_wrap=True).print(f"Report: {out / 'report.html'}", highlight=False)


@app.command(
    epilog=_examples(
        'fedvpa generate runs/aligned --prototype 0 --prompt "How do I boil an egg?"',
        'fedvpa generate runs/aligned --user me.json --best-of 4 --prompt "How do I boil an egg?"',
        'fedvpa generate runs/aligned --blend 0:0.3,1:0.7 --prompt "How do I boil an egg?"',
        'fedvpa generate runs/hh4 --prototype 0 --best-of 8 --prompt "How do I boil an egg?"',
    )
)
def generate(
    folder: Annotated[Path, typer.Argument(help="A folder of `fedvpa align`, or of `fedvpa train`.", metavar="DIR")],
    prompt: Annotated[str, typer.Option(help="What is asked.", show_default=False)],
    user: Annotated[Path | None, typer.Option(help="A file of `fedvpa personalize`.")] = None,
    prototype: Annotated[int | None, typer.Option(help="Number of a prototype.")] = None,
    blend: Annotated[str | None, typer.Option(help="Prototypes with weights, as 0:0.3,1:0.7.")] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Responses among which the selector chooses.")] = 1,
    base: Annotated[bool, typer.Option("--base", help="The untrained model writes.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Sampling temperature; 0: greedy.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same response.")] = 0,
) -> None:
    """Answer as a user, a prototype or a blend of prototypes would like it.

    With the folder of `fedvpa train` the untrained model writes, and --best-of lets the selector choose.
    """
    with _extra("align"):
        from fedvpa.apps.blends import parse_blend
        from fedvpa.apps.generating import open_policy
    from fedvpa.user import User

    who = None if user is None else User.load(user)
    text = open_policy(folder, base, best_of).generate(
        prompt,
        who,
        prototype=prototype,
        blend=None if blend is None else parse_blend(blend),
        best_of=best_of,
        base=base,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    print(text)


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Says how to install an extra whose modules are not there."""
    try:
        yield
    except ModuleNotFoundError as e:
        raise MissingExtra(str(e.name), name) from None


@app.command(
    epilog=_examples("fedvpa serve runs/first", "FEDVPA_TOKEN=... fedvpa serve runs/first --host 0.0.0.0 --port 8400")
)
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Where to listen; other machines need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8400,
    token: Annotated[
        str | None, typer.Option(envvar="FEDVPA_TOKEN", help="What callers must send.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 60.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused with 429.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Requests merged into one batch; 1 merges none.")] = 64,
    memory: Annotated[int, typer.Option(min=1, help="MiB of features that are kept.")] = 256,
    rollout: Annotated[int, typer.Option(min=1, help="Queries in one request of an OpenRLHF trainer.")] = 16_384,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of the policy that an OpenRLHF trainer trains: what its template adds is taken off."),
    ] = None,
) -> None:
    """Serve a selector over HTTP: infer users, score, rank, and rewards for OpenRLHF. Ctrl-C or SIGTERM stops it."""
    with _extra("serve"):
        from fedvpa.apps.server.running import serve as work
        from fedvpa.apps.server.settings import MIB, Settings

    sizes = {"queue": queue, "batch_requests": batch, "memory": memory * MIB, "max_rollout": rollout}
    sizes["max_rollout_bytes"] = max(2 * MIB, rollout * 8192)
    work(run, Settings(host, port, token, timeout=timeout, tokenizer=tokenizer, **sizes), _console())


@app.command(epilog=_examples("fedvpa forget runs/first user-17"))
def forget(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or a SuperNode's state folder.", metavar="RUN")],
    user: Annotated[str, typer.Argument(help="The user's id, as in the data, or its pseudonym.", metavar="USER")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where the run's data are now, as data.path=FILE.", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Delete what a run keeps about a user: posterior, private state, figures. The trained selector stays as it is."""
    from fedvpa.apps import forgetting

    found = forgetting.forget(run, user, overrides or ())
    console = _stdout(soft_wrap=True)
    for path in found.files:
        how = "rewritten without the user" if path.exists() else "deleted"
        how = "was damaged, deleted" if path in found.deleted else how
        console.print(f"{path}: {how}", highlight=False, markup=False)
    console.print(found.remains, highlight=False, markup=False)


@app.command(
    epilog=_examples(
        "fedvpa studio runs/first",
        "fedvpa studio runs/hh4 --policy runs/aligned",
        "FEDVPA_TOKEN=a-long-secret fedvpa studio runs/first --host 0.0.0.0",
    )
)
def studio(
    run: Run,
    policy: Annotated[Path | None, typer.Option(help="A folder of `fedvpa align`, whose policy writes.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="JSON Lines with prompt, a, b to ask; by default the run's unseen pairs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="FEDVPA_TOKEN", help="What visitors must know.", show_default=False)
    ] = None,
) -> None:
    """Open a web page on which you teach the selector what you like, and switch preferences."""
    with _extra("studio"):
        from fedvpa.apps.studio.serving import serve
    with _extra("align"):  # a policy
        serve(run, policy, pairs, host, port, token, partial(_stdout(soft_wrap=True).print, highlight=False))


@app.command(epilog=_examples("fedvpa report runs/first"))
def report(run: Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")]) -> None:
    """Build report.html of a finished run again, and print its tables."""
    from fedvpa.apps.runs import METRICS, RESULTS, read_config
    from fedvpa.evaluation.result_files import read_metrics, read_results
    from fedvpa.reporting.html import write_report

    settings = read_config(run)
    results = read_results(run / RESULTS)
    write_report(run, results, read_metrics(run / METRICS), settings.to_yaml())
    _show(results, settings, run, None)


if __name__ == "__main__":
    sys.exit(main())
