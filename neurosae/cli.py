"""The command line: verbs of a few lines around public functions, one-line errors, exit codes 0, 1, 2 and 130."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

import neurosae as ns
from neurosae.errors import NeurosaeError

TEACH = """
Cognitive-neuroscience statistics for the features inside language models.

Two YAML files make a study: a DESIGN (factors, frames, items) and an ANALYSIS (model, sites, effects, tests).

\b
  neurosae check stimuli/number_agreement.yaml     what is in the design, what may be exchanged, what is confounded
  neurosae check analyses/number_agreement.yaml    the same, and whether every test can be run; loads no model
  neurosae run analyses/number_agreement.yaml      extract, test, report: results/number_agreement/report.html
  neurosae compare-dictionaries analyses/dictionaries.yaml   the same study on several dictionaries: what replicates
  neurosae power analyses/number_agreement.yaml    how many items the next study needs

Add --debug to any verb to see the traceback of an error, --quiet to see no progress bars.
A second run reuses what is stored; a killed run continues. Nothing uses the network unless the analysis names a hub id.
"""
INTERRUPTED = 130
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of all studies; each gets a folder of its name.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. Refused, not replaced, when it is missing.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; replaces model.dtype of the analysis.")]
Seed = Annotated[int | None, typer.Option(help="Replaces `seed:` of the analysis; recorded in the provenance.")]
Offline = Annotated[bool, typer.Option("--offline", help="Refuse the network even if the analysis names a hub id.")]
Control = Literal["reinit", "shuffle"]
Analysis = Annotated[Path, typer.Argument(help="An analysis file (schema: neurosae/analysis/1).")]

app = typer.Typer(
    help=TEACH, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _prepare(path: Path, out: Path, *, device: str, dtype: str | None, seed: int | None, offline: bool) -> ns.Study:
    """Read and check both files before anything heavy is imported, then fix the rules for the network."""
    study = ns.prepare_study(path, out, device=device, overrides={"dtype": dtype, "seed": seed})
    if offline or not ns.needs_network(study.spec):
        os.environ.update(ns.OFFLINE)
    return study


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A design or an analysis file.")],
    *,
    tokenizer: Annotated[Path | None, typer.Option(help="A model folder: single tokens and lengths too.")] = None,
) -> None:
    """Validate a file and print its cells, what is exchanged, the smallest p, and confounds. Loads no model."""
    typer.echo(ns.check_file(file, tokenizer=tokenizer).text())


@app.command()
def expand(
    design: Annotated[Path, typer.Argument(help="A design file (schema: neurosae/design/1); with --from, any file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write, .csv or .parquet; .yaml: an imported design.")
    ],
    *,
    given: Annotated[str | None, typer.Option("--from", help="Import lists, csv, jsonl or minimal_pairs.")] = None,
    factors: Annotated[str | None, typer.Option(help="With --from: names of the factors, a,b.")] = None,
) -> None:
    """Write the stimulus table of a design: one row per text, with the character span of every region."""
    made = ns.import_design(design, given, factors=factors.split(",") if factors else None) if given else None
    if made is not None and out.suffix == ".yaml":
        ns.write_design(out, made)
        typer.echo(f"{out}: check it, `neurosae check {out}`, before an analysis names it")
        return
    stimuli = ns.expand(made or ns.load_design(design))
    ns.write_table(out, stimuli)
    typer.echo(f"{len(stimuli)} stimuli in {out}")


@app.command()
def train(
    analysis: Analysis,
    *,
    text: Annotated[list[Path] | None, typer.Option(help="Text files (.txt, .txt.gz) or a dataset folder.")] = None,
    out: Out = Path("results"),
    device: Device = "auto",
    dtype: Dtype = None,
    offline: Offline = False,
) -> None:
    """Train the dictionaries that the sites of an analysis ask for; without --text on the model's own samples."""
    study = _prepare(analysis, out, device=device, dtype=dtype, seed=None, offline=offline)
    for site, folder in ns.train_study(study, text or []).items():
        typer.echo(f"{site}: {folder}")


@app.command()
def extract(
    analysis: Analysis,
    *,
    out: Out = Path("results"),
    device: Device = "auto",
    dtype: Dtype = None,
    offline: Offline = False,
) -> None:
    """Run the design's stimuli through the model and store the responses of every site."""
    study = _prepare(analysis, out, device=device, dtype=dtype, seed=None, offline=offline)
    for site, adata in ns.extract_study(study).items():
        typer.echo(f"{site}: {adata.n_obs:,} rows x {adata.n_vars:,} features, {adata.X.nnz:,} active")
        for sentence in ns.provenance_of(adata).get("warnings", []):
            typer.echo(f"  {sentence}")


@app.command("test")
def run_tests(
    analysis: Analysis,
    *,
    null: Annotated[int, typer.Option(help="Shuffle the labels this many times; report the error rate.")] = 0,
    out: Out = Path("results"),
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = None,
    offline: Offline = False,
) -> None:
    """Run the tests of an analysis on stored responses; with --null N on N sets with shuffled labels instead."""
    study = _prepare(analysis, out, device=device, dtype=dtype, seed=seed, offline=offline)
    if null:
        typer.echo(ns.calibrate_study(study, n_sets=null).to_string(index=False))
    else:
        results = ns.test_study(study)
        typer.echo(ns.summarize(results, study.spec.inference.alpha))


@app.command()
def evaluate(
    analysis: Analysis,
    *,
    text: Annotated[list[Path] | None, typer.Option(help="Held-out text; left out, the model writes some.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that are read.")] = 5_000,
    control: Annotated[
        Control | None, typer.Option(help="Train the same recipes on a model without what was learned; both are shown.")
    ] = None,
    out: Out = Path("results"),
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Measure the dictionaries of an analysis on held-out text: L0, FVU, what the model loses, dead features.

    One row per site, also in results/NAME/evaluation.csv: l0, fvu and cosine describe the reconstruction; ce_ and
    kl_recovered what the model keeps of its predictions (against mean ablation; zero flatters); pathology how much
    worse the error is than a random one of its length; dead with density_bound, its 95 % upper bound; absorbed the
    pairs of the absorption screen. Intervals are over documents.
    """
    study = _prepare(analysis, out, device=device, dtype=None, seed=None, offline=offline)
    table = ns.evaluate_study(study, texts=[str(path) for path in text or []], n_tokens=tokens, control=control)
    ns.write_table(study.folder / "evaluation.csv", table.set_index("site"))
    typer.echo(ns.summarize_comparison({"comparison": table}))
    typer.echo(study.folder / "evaluation.csv")


@app.command("compare-dictionaries")
def compare(
    analysis: Analysis,
    *,
    sites: Annotated[str, typer.Option(help="Some of the sites, as a,b,c; all without.")] = "",
    text: Annotated[list[Path] | None, typer.Option(help="Held-out text; left out, the model writes some.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the evaluation.")] = 2_000,
    out: Out = Path("results"),
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Run a study on every dictionary that its sites name, and say what they agree on.

    Sites may be layers, widths, seeds, architectures, or baselines such as neurons. Compared are the evaluation, what
    each contrast finds, how well features and probes of equal size tell levels apart, matched features and the
    geometry of stimuli; never feature indices. Tables and comparison.html lie in results/NAME/comparison.
    """
    study = _prepare(analysis, out, device=device, dtype=None, seed=None, offline=offline)
    asked = [name.strip() for name in sites.split(",") if name.strip()]
    tables = ns.compare_dictionaries(study, sites=asked, texts=[str(path) for path in text or []], n_tokens=tokens)
    typer.echo(ns.summarize_comparison(tables))
    typer.echo(ns.write_comparison(study.folder))


@app.command()
def examine(
    analysis: Analysis,
    *,
    features: Annotated[str, typer.Option(help="late/12,late/40; left out, what `examine:` says.")] = "",
    text: Annotated[list[Path] | None, typer.Option(help="Text files or data set folders beside the study's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of that text; without it the model writes them.")] = None,
    out: Out = Path("results"),
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Look at features: what they fire on, promote and lie near, rules that tell where, labels; described, not tested.

    Tables, and viewer.html with shaded tokens, lie in results/NAME/examine; cards go into the report of a finished
    study. Nothing is sent anywhere unless the analysis names an endpoint.
    """
    study = _prepare(analysis, out, device=device, dtype=None, seed=None, offline=offline)
    given = {"texts": tuple(map(str, text or ())), "n_tokens": tokens}
    changes = {name: value for name, value in given.items() if value}
    if features:
        changes["features"] = {"ids": ns.parse_features(features)}
    typer.echo(ns.summarize_examined(ns.examine_study(study, changes=changes)))
    typer.echo(study.folder / "examine" / "viewer.html")
    if (study.folder / "results.parquet").is_file():
        typer.echo(ns.write_report(study.folder))


@app.command()
def power(analysis: Analysis, *, out: Out = Path("results"), seed: Seed = None) -> None:
    """Power over the number of items for a stated smallest effect; stored responses serve as pilot. Loads no model."""
    study = _prepare(analysis, out, device="auto", dtype=None, seed=seed, offline=True)
    table = ns.power_study(study)
    typer.echo(table.round(3).to_string(index=False, na_rep="-"))
    typer.echo(ns.recommend(table))
    typer.echo(study.folder / "power.csv")


@app.command()
def calibrate(
    *,
    sets: Annotated[int, typer.Option(help="Data sets per cell.")] = 200,
    full: Annotated[bool, typer.Option("--full", help="The whole grid; without it ten cells.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of calibration.csv and .md.")] = Path("results"),
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
) -> None:
    """Error rates, discoveries and coverage of every method on simulated data; a killed run continues."""
    table = ns.calibrate_methods(out, n_sets=sets, full=full, seed=seed)
    typer.echo((out / "calibration.md").read_text(encoding="utf-8"))
    if table.query("role == 'tested'")["verdict"].eq("above").any():
        raise typer.Exit(code=1)


@app.command()
def integration(
    *,
    worlds: Annotated[bool, typer.Option("--worlds", help="Run the battery on its control worlds.")] = False,
    sets: Annotated[int, typer.Option(help="Data sets per world.")] = 100,
    quick: Annotated[bool, typer.Option("--quick", help="One size per world, at most 20 data sets.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of integration_worlds.csv.")] = Path("results"),
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
) -> None:
    """What the integration battery finds in worlds with and without integration, its naive variants beside it."""
    if not worlds:
        raise typer.BadParameter("say --worlds; a study's own battery is `test: integration` in its analysis.")
    table = ns.integration_worlds(out, n_sets=min(sets, 20) if quick else sets, quick=quick, seed=seed)
    typer.echo(ns.worlds_text(table))
    typer.echo(out / "integration_worlds.csv")
    if table["verdict"].eq("outside").any():
        raise typer.Exit(code=1)


@app.command()
def generate(
    analysis: Analysis,
    prompt: Annotated[str, typer.Argument(help="The text that is continued.")],
    *,
    features: Annotated[str, typer.Option(help="site/feature=value, several with commas: early/12=8,late/40=2.5.")],
    mode: Annotated[str, typer.Option(help="clamp, conditional, steer, scale; ablate takes no values.")] = "clamp",
    tokens: Annotated[int, typer.Option(help="Largest number of new tokens.")] = 40,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    seed: Annotated[list[int] | None, typer.Option(help="One pair of texts per seed; repeat it for more.")] = None,
) -> None:
    """Continue a prompt with features edited, and beside it without, from the same random numbers."""
    study = _prepare(analysis, Path("results"), device="auto", dtype=None, seed=None, offline=False)
    model, dictionaries = study.live()
    settings = {"mode": mode, "n_tokens": tokens, "temperature": temperature}
    seeds = seed or [study.spec.seed]
    samples = ns.steered_samples(model, dictionaries, prompt, features=features, settings=settings, seeds=seeds)
    typer.echo(ns.beside(samples))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="The folder of a study, such as results/number_agreement.")],
) -> None:
    """Rebuild report.html and its figures from stored results alone."""
    typer.echo(ns.write_report(study))


@app.command()
def run(
    analysis: Analysis,
    *,
    out: Out = Path("results"),
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = None,
    offline: Offline = False,
) -> None:
    """Check, extract, test and report; every stage that is already stored is reused."""
    study = _prepare(analysis, out, device=device, dtype=dtype, seed=seed, offline=offline)
    results = ns.run_study(study)
    typer.echo(ns.summarize(results, study.spec.inference.alpha))
    typer.echo(study.folder / "report.html")


@app.command()
def cache(
    *,
    out: Out = Path("results"),
    prune: Annotated[bool, typer.Option("--prune", help="Remove entries, by one of the two rules or both.")] = False,
    older_than: Annotated[float | None, typer.Option(help="With --prune: days since an entry was written.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="With --prune: 500MB, 2GB: the oldest go until this is left.")
    ] = None,
) -> None:
    """List responses, dictionaries and texts kept for later runs, and remove the old. Results are never touched."""
    if prune:
        typer.echo(ns.pruned(out, older_than=older_than, keep=keep))
    elif older_than is not None or keep is not None:
        raise NeurosaeError("--older-than and --keep say what to remove; add --prune.")
    typer.echo(ns.kept(out))


def main() -> None:
    """Entry point: errors on one line, a traceback only with --debug, no progress bars with --quiet."""
    if "--quiet" in sys.argv:
        sys.stderr = _Log(sys.stderr.buffer, encoding=sys.stderr.encoding, errors="replace", line_buffering=True)
    try:
        # typer turns Ctrl-C into exit code 130 without a word; not standalone, it hands the code over
        code = app([word for word in sys.argv[1:] if word not in ("--debug", "--quiet")], standalone_mode=False)
        if code == INTERRUPTED:
            _fail("interrupted; what was finished is stored, and the same command continues.", code=INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)
    except NeurosaeError as error:
        _fail(str(error), code=1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"cannot use{where}: {(error.strerror or str(error)).lower()}.", code=1)
    except Exception as error:  # wrong usage: typer's own error knows how to show itself
        if not hasattr(error, "show"):
            raise
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
        sys.exit(getattr(error, "exit_code", 2))


class _Log(io.TextIOWrapper):
    """Standard error as if it went into a file, where progress bars are not drawn."""

    def isatty(self) -> bool:
        return False


def _fail(message: str, *, code: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
