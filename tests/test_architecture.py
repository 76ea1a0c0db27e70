"""The house rules: layers, fences, sizes, parameters, no globals, registries that equal their schemas."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import neurosae as ns

PACKAGE = Path(__file__).resolve().parent.parent / "neurosae"
PATHS = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
PATHS = {name: path for name, path in PATHS.items() if not name.endswith("__init__")}
MODULES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}

# A module imports only from layers with a smaller number, also inside functions; equal numbers never import each other.
LAYERS = """
0  errors spec.words
1  spec.hooks spec.fields spec.files spec.frames
2  spec.load spec.effects spec.sites spec.results
2  spec.block
3  spec.geometry spec.factorial spec.design spec.positions spec.subjects
4  spec.blocks
3  spec.planning
4  design.regions design.units design.weights
5  spec.maps spec.parametric spec.choices
6  spec.analysis
5  design.regressors design.levels design.expand design.confounds extraction.sites extraction.tokens
4  extraction.trie extraction.slow_tokens
5  extraction.packing
5  design.orthogonal
6  dictionary.pursuit dictionary.products dictionary.topk dictionary.encode
7  dictionary.kinds
7  spec.editor
6  design.exchange design.check_report design.cautions design.token_checks extraction.source
6  extraction.cells extraction.responses extraction.passes
7  extraction.firing extraction.selftest extraction.budget extraction.boot
8  extraction.model
7  extraction.collapse extraction.shifts extraction.signed
8  extraction.align extraction.views
7  design.model_checks extraction.store extraction.archive
8  stats.kernels stats.effects stats.moderation stats.nuisance stats.multiplicity dictionary.record dictionary.texts
7  dictionary.settings dictionary.revival
8  dictionary.watch dictionary.budget
7  stats.ranks stats.mean_squares
8  stats.scores design.checks
8  stats.noncentral stats.pattern stats.rdm_compare stats.rdm_noise
9  stats.glm_kernels stats.mixed_kernels stats.layout
9  stats.level_kernels stats.relabel stats.tails stats.rdm stats.simulate stats.tfce dictionary.learn
9  dictionary.stream extraction.shard
9  stats.products stats.crossfit_kernels stats.rdm_fit stats.rank_kernels stats.relabel_conditions
10 stats.glm stats.hurdle_kernels
10 dictionary.interaction dictionary.plan dictionary.rows
11 dictionary.architectures dictionary.pathology
12 dictionary.train dictionary.interaction_study
10 stats.rdm_models stats.feature_shares
10 stats.flips stats.units stats.resample dictionary.checkpoint dictionary.evaluate extraction.record
11 extraction.run
10 stats.conjunctions
8  stats.gate stats.information stats.ladder
9  stats.dperp
11 stats.battery stats.preactivations
3  spec.integration
7  design.requirements
12 stats.integration_rows
16 stats.conj
17 stats.integration report.figures_integration
18 report.integration
12 stats.integration_worlds
11 stats.mixed stats.levels stats.hurdle
11 stats.adjusted stats.projection stats.chains stats.lanes stats.length stats.worlds
11 stats.plasmode stats.crossfit stats.communities stats.model_comparison
12 stats.crossed stats.lengths
12 stats.coded stats.matched
13 stats.decoding stats.spots
8  stats.cvmanova stats.permanova stats.manova
14 stats.distances
15 stats.pattern_statistics
17 stats.factorial stats.choosing
9  stats.logistic stats.rules
10 stats.paired
13 dictionary.sweep
12 stats.subjects stats.intervals stats.statistics stats.geometry dictionary.alternatives
13 dictionary.load dictionary.control
9  dictionary.convert dictionary.overlap
12 dictionary.scorecard
9  stats.agreement
10 stats.probes
8  dictionary.decompositions
13 stats.parametric_models
13 stats.family stats.second_order stats.rsa_rows stats.rsa_tests stats.feature_geometry
14 stats.rsa
16 stats.across_subjects
17 report.figures_subjects
18 report.subjects
14 stats.rows stats.heights stats.asked
15 stats.map_rows stats.searchlight stats.temporal
15 stats.contrast report.style report.wording report.references report.stored
15 report.directions
15 stats.power
16 stats.parametric
16 stats.minimum stats.equivalence
17 stats.combine
16 report.tables report.parts
17 report.figures_training
16 stats.level_trials
17 stats.trials
16 stats.maps stats.pairs stats.sets
17 report.figures_courses report.figures_features report.figures_pattern report.figures_univariate report.result_tables report.claims
17 report.limits report.page report.figures_geometry
17 report.figures_power report.figures_maps report.figures_factorial
18 report.factorial report.choosing report.anova stats.anova
1  design.import_files
2  design.import_tables
4  design.importers
9  stats.anova_tables
18 stats.calibrate
17 stats.crosstest stats.othereffect report.figures_sets
18 report.models
18 report.absence
18 report.figures report.prose report.methods report.maps report.joint
18 stats.selection report.regions
19 report.calibration
19 report.geometry
20 report.sections
21 report.html report.comparison
17 report.figures_comparison
21 provenance
22 stages
23 study
24 comparison
25 cli
"""
RANK = {name: int(line.split()[0]) for line in LAYERS.strip().splitlines() for name in line.split()[1:]}

# Third parties that are heavy, or that only one part of the house should know.
ONLY = {
    "torch": [
        *(
            "extraction.model",
            "extraction.boot",
            "extraction.passes",
            "extraction.firing",
            "extraction.selftest",
            "extraction.budget",
        ),
        *("extraction.shard", "dictionary.*"),
    ],
    "transformer_lens": ["extraction.boot"],
    "transformers": ["extraction.boot"],
    "huggingface_hub": ["extraction.source"],
    "sae_lens": ["dictionary.*"],
    "tokenizers": ["extraction.tokens"],
    "safetensors": ["dictionary.*"],
    "anndata": ["extraction.*"],
    "zarr": ["extraction.store", "extraction.archive"],
    "numba": ["stats.*", "dictionary.encode"],
    "rsatoolbox": ["stats.rsa", "stats.rdm", "stats.model_comparison"],
    "sklearn": ["dictionary.*", "stats.*"],
    "networkx": ["stats.communities"],
    "statsmodels": ["stats.*"],
    "pingouin": ["stats.*"],
    "matplotlib": ["report.figures*", "report.style"],
    "seaborn": ["report.figures*", "report.style"],
    "jinja2": ["report.html", "report.comparison"],
    "yaml": ["spec.load"],
    "pydantic": ["spec.*"],
    "pydantic_core": ["spec.*"],
    "typer": ["cli"],
    "nilearn": [],
    "mne": [],
    "scanpy": [],
}


def statements(tree: ast.AST):
    """Every node that runs: what stands under `if TYPE_CHECKING:` is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from statements(node)


def imported(node: ast.AST):
    """Dotted names that a node imports, ours without `neurosae.`."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("neurosae.") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        base = (node.module or "").removeprefix("neurosae").strip(".")
        for alias in node.names:
            name = f"{base}.{alias.name}".strip(".")
            yield name if name in PATHS else base


def functions(tree: ast.AST):
    """Every function and method."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_every_module_has_a_layer():
    """A new module is placed on purpose."""
    assert set(RANK) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    """A module imports only from lower layers, and third parties only where they belong."""
    for node in statements(MODULES[name]):
        for other in imported(node):
            assert other not in RANK or RANK[other] < RANK[name], f"{name} imports {other}"
            top = other.split(".")[0]
            allowed = ONLY.get(top, ["*"])
            assert any(fnmatch(name, pattern) for pattern in allowed), f"{name} imports {top}; only {allowed} may"


@pytest.mark.parametrize("name", MODULES)
def test_sizes(name):
    """A file is one thing, and a function fits on a screen."""
    assert len(PATHS[name].read_text(encoding="utf-8").splitlines()) <= 400
    long = {f.name: n for f in functions(MODULES[name]) if (n := body_lines(f)) > 60}
    assert not long


@pytest.mark.parametrize("name", MODULES)
def test_few_parameters(name):
    """At most seven parameters, three of them positional."""
    for function in functions(MODULES[name]):
        spec = function.args
        positional = [a.arg for a in (*spec.posonlyargs, *spec.args) if a.arg not in ("self", "cls")]
        assert len(positional) <= 3, function.name
        assert len(positional) + len(spec.kwonlyargs) <= 7, function.name


@pytest.mark.parametrize("name", MODULES)
def test_no_state_and_no_pickle(name):
    """No globals, no pickle from disk, no evaluation of text, no open loops to the network."""
    names = {n.id for n in ast.walk(MODULES[name]) if isinstance(n, ast.Name)}
    assert not any(isinstance(n, ast.Global | ast.Nonlocal) for n in ast.walk(MODULES[name]))
    assert not names & {"eval", "exec", "pickle"}


@pytest.mark.parametrize("name", sorted(ns.__all__))
def test_public_names_are_documented(name):
    """Every public name resolves, functions have a docstring, and nothing is called like a subpackage."""
    thing = getattr(ns, name)
    assert not (PACKAGE / name).is_dir()
    if inspect.isfunction(thing):
        assert inspect.getdoc(thing)
        assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(thing).parameters.values())


def test_import_is_light():
    """`import neurosae` loads none of the heavy packages, nor does checking a design."""
    heavy = "{'torch', 'anndata', 'transformers', 'numba', 'sae_lens', 'matplotlib', 'rsatoolbox'}"
    code = f"import sys, neurosae; neurosae.load_analysis, neurosae.check; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_literals_equal_registries():
    """What YAML may name is exactly what the code can do."""
    from neurosae.spec.analysis import Positions
    from neurosae.spec.blocks import Correction, Inference, MapStatistic, Statistic

    aligned = import_module("neurosae.extraction.align").ALIGNMENTS
    assert set(get_args(Positions.model_fields["align"].annotation)) == set(aligned)
    assert set(get_args(Positions.model_fields["tokens"].annotation)) == set(
        import_module("neurosae.extraction.collapse").COLLAPSE
    )
    assert set(get_args(Statistic)) == set(import_module("neurosae.stats.statistics").STATISTICS)
    assert set(get_args(Correction)) == set(import_module("neurosae.stats.family").CORRECTIONS)
    assert set(get_args(MapStatistic)) == set(import_module("neurosae.stats.heights").MAPS)
    assert Inference().correction in get_args(Correction)


def test_no_path_of_a_machine_is_in_the_tree():
    """The package speaks of itself alone."""
    for path in PATHS.values():
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text
        assert "/work/" not in text
