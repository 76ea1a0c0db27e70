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
1  causal.progress causal.scoring design.import_files spec.fields spec.files spec.frames spec.hooks
2  design.import_tables spec.block spec.effects spec.load spec.results spec.sites
3  spec.attribution spec.causal spec.design spec.examine spec.examine_tests spec.factorial spec.generation
3  spec.geometry spec.integration spec.patching spec.planning spec.positions spec.subjects
4  design.importers design.regions design.units design.weights extraction.slow_tokens extraction.trie spec.blocks
4  cache dictionary.screen_kernels extraction.siblings spec.geometry_checks
5  design.confounds design.expand design.levels design.orthogonal design.regressors extraction.packing
5  extraction.sites extraction.tokens spec.choices spec.circuits spec.interventions spec.maps spec.parametric
5  dictionary.screen spec.patching_checks
6  design.cautions design.check_report design.exchange design.token_checks dictionary.encode dictionary.products
6  dictionary.pursuit dictionary.topk examine.endpoint extraction.cells extraction.passes extraction.responses
6  extraction.source spec.analysis stats.kernels
7  causal.entries design.intervention_checks design.model_checks design.requirements dictionary.kinds dictionary.revival
7  dictionary.settings extraction.archive extraction.boot extraction.budget extraction.collapse extraction.firing
7  extraction.selftest extraction.shifts
7  extraction.signed extraction.store spec.editor stats.mean_squares stats.pair_kernels stats.ranks
8  causal.controls causal.doses causal.edits causal.freezing causal.prompts causal.scored design.checks
8  dictionary.budget dictionary.decompositions dictionary.record dictionary.texts dictionary.vectors dictionary.watch
8  examine.scores
8  extraction.align extraction.model extraction.views stats.cvmanova stats.dense_columns stats.effects stats.gate
8  stats.information stats.ladder stats.manova stats.moderation stats.multiplicity stats.noncentral stats.nuisance
8  stats.joined stats.pattern stats.permanova stats.rdm_compare stats.rdm_noise stats.scores
9  causal.chosen causal.conditions causal.deltas causal.outcomes dictionary.convert dictionary.learn
9  dictionary.overlap dictionary.stream examine.profiles extraction.shard stats.agreement stats.anova_tables
9  stats.crossfit_kernels stats.dperp stats.glm_kernels stats.layout stats.level_kernels stats.logistic
9  stats.mixed_kernels stats.products stats.rank_kernels stats.rdm stats.rdm_fit stats.relabel
9  stats.relabel_conditions stats.rules stats.simulate stats.tails stats.tfce
10 causal.plan dictionary.checkpoint dictionary.evaluate dictionary.interaction dictionary.plan dictionary.rows
10 extraction.record stats.conjunctions stats.feature_shares stats.flips stats.glm stats.hurdle_kernels stats.paired
10 stats.probes stats.rdm_models stats.resample stats.units
11 causal.gradients causal.passes causal.steering dictionary.architectures dictionary.pathology examine.items
11 examine.stream extraction.run stats.adjusted stats.battery stats.chains stats.communities stats.crossfit stats.hurdle
11 stats.lanes stats.length stats.levels stats.mixed stats.model_comparison stats.nested_shares stats.plasmode
11 stats.preactivations stats.projection stats.worlds
12 causal.attribution causal.decoding causal.items causal.material causal.replacements
12 dictionary.alternatives dictionary.interaction_study dictionary.scorecard dictionary.train examine.activity
12 examine.directions examine.levels examine.seen examine.summary examine.together stats.coded stats.crossed
12 stats.geometry stats.integration_rows
12 stats.integration_worlds stats.intervals stats.lengths stats.matched stats.statistics stats.subjects
13 causal.direct causal.generation causal.inference causal.ladder causal.patching dictionary.control dictionary.load
13 dictionary.sweep examine.concepts examine.examples examine.inversion examine.labels examine.rules
13 examine.thresholds stats.condition_labels stats.decoding stats.family stats.feature_geometry
13 stats.parametric_models stats.rsa_rows stats.spots
14 causal.changes causal.costs causal.joint_effects causal.prompted causal.prompting examine.tracking examine.verdicts
14 examine.viewer
14 report.compact stats.asked stats.distances stats.heights stats.rows stats.rsa_tests stats.second_order
15 causal.pairs causal.removing causal.rows causal.workload report.directions report.references report.stored
15 report.style
15 report.wording stats.contrast stats.map_rows stats.pattern_statistics stats.power stats.rsa stats.searchlight
15 stats.temporal
16 causal.beside causal.patched causal.population causal.pushes causal.removal_rows causal.tested examine.describe
16 examine.specialists
16 report.parts report.tables stats.across_subjects stats.conj stats.equivalence stats.level_trials stats.maps
16 stats.minimum stats.pairs stats.parametric stats.sets
17 causal.attention causal.interventions causal.joint causal.lens causal.removal causal.written report.claims
17 report.figures_attribution report.figures_cards report.figures_causal report.figures_comparison
17 report.figures_courses report.figures_examine report.figures_factorial report.figures_features
17 report.figures_geometry report.figures_integration report.figures_maps report.figures_patching
17 report.figures_pattern report.figures_power report.figures_sets report.figures_subjects report.figures_training
17 report.figures_univariate report.figures_written report.limits report.page report.result_tables stats.choosing
17 stats.combine stats.crosstest stats.factorial stats.integration stats.othereffect stats.trials
18 causal.screened causal.sequences report.absence report.anova report.attribution report.cards report.causal
18 report.choosing report.factorial report.figures report.integration report.joint report.maps report.methods
18 report.models report.patching report.prose report.regions report.specialists report.subjects report.written
18 stats.anova stats.calibrate stats.selection
19 causal.heads report.calibration report.geometry
20 report.sections
21 provenance report.comparison report.html
22 stages
23 examination study
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
        *(
            "extraction.shard",
            "dictionary.*",
            "causal.*",
            "examine.stream",
            "examine.directions",
            "examine.inversion",
            "examine.tracking",
        ),
    ],
    "transformer_lens": ["extraction.boot"],
    "transformers": ["extraction.boot", "extraction.siblings"],
    "huggingface_hub": ["extraction.source"],
    "sae_lens": ["dictionary.*"],
    "tokenizers": ["extraction.tokens"],
    "safetensors": ["dictionary.*"],
    "anndata": ["extraction.*"],
    "zarr": ["extraction.store", "extraction.archive"],
    "numba": ["stats.*", "dictionary.screen_kernels"],
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
        assert f"{Path.home()}/" not in text
        assert f"{PACKAGE.parent}/" not in text
