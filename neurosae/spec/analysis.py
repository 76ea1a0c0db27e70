"""Schema of an analysis file, and the references between its sections and to its design."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from neurosae.errors import unknown
from neurosae.spec.attribution import CircuitBlock
from neurosae.spec.blocks import (
    TESTS,
    ContrastBlock,
    EquivalenceBlock,
    FeatureChoice,
    Inference,
    JointBlock,
    MapBlock,
    PairsBlock,
    ParametricBlock,
    RoiBlock,
)
from neurosae.spec.causal import CausalBlock, causal_effects
from neurosae.spec.choices import choice_problems, family_problems, nuisance_problems, regression_problems
from neurosae.spec.circuits import circuit_design_problems, circuit_problems, named_effects
from neurosae.spec.design import Design, load_design, region_names
from neurosae.spec.effects import effect_problems, shape_problems
from neurosae.spec.examine import ExamineBlock, examine_design_problems, examine_problems
from neurosae.spec.examine_tests import SpecialistsBlock, specialist_problems
from neurosae.spec.factorial import PatternBlock, chooses_earlier, effects_named, pattern_problems
from neurosae.spec.fields import Count, FileName, Natural, Strict, Text, fail, fail_all
from neurosae.spec.generation import WrittenBlock, written_design_problems, written_effects, written_problems
from neurosae.spec.geometry import GeometryBlock, RdmModel, RsaBlock, geometry_effects
from neurosae.spec.geometry_checks import geometry_problems
from neurosae.spec.integration import IntegrationBlock, integration_design_problems, integration_problems
from neurosae.spec.interventions import causal_design_problems, causal_problems
from neurosae.spec.load import is_file, load_yaml, similar_file
from neurosae.spec.maps import map_problems
from neurosae.spec.parametric import parametric_problems
from neurosae.spec.patching import PatchingBlock
from neurosae.spec.patching_checks import patching_design_problems, patching_problems
from neurosae.spec.planning import Power, power_problems
from neurosae.spec.positions import WHOLE, Positions, score_problems
from neurosae.spec.sites import DictionaryBlock, ModelBlock, Site, StudyPath, TrainBlock
from neurosae.spec.subjects import SubjectsBlock, subject_problems
from neurosae.spec.words import Problem, Where, describe, short

SCHEMA = "neurosae/analysis/1"
__all__ = [
    "Analysis",
    "ContrastBlock",
    "DictionaryBlock",
    "FeatureChoice",
    "Inference",
    "MapBlock",
    "ModelBlock",
    "ParametricBlock",
    "Positions",
    "RdmModel",
    "Report",
    "RsaBlock",
    "Site",
    "TrainBlock",
    "load_analysis",
]


class Report(Strict):
    """What the report shows."""

    title: Text | None = None
    """Title; left out, the name of the analysis."""
    top_features: Count = 20
    """How many features are shown with all their items."""
    cards: Count = 20
    """How many examined features have a card; tables and viewer hold them all."""
    content_warning: Text | None = None
    """A sentence that stands in front of texts of this study; they are folded away behind it."""


def _test_block(value: Any, _: Any, info: ValidationInfo) -> Any:
    """A test's block by the schema of its kind; the registry may be the user's own."""
    tests = (info.context or {}).get("tests", TESTS)
    if isinstance(value, Strict):
        return value
    if not isinstance(value, Mapping):
        fail(text=f"is {describe(value)}; write {{test: contrast, …}}.")
    kind = value.get("test")
    if not isinstance(kind, str):
        fail("test", text=f"is {describe(kind) if 'test' in value else 'missing'}; write one of {', '.join(tests)}.")
    if kind not in tests:
        fail("test", text=unknown("test", short(kind), tests))
    return tests[kind][0].model_validate(value, context=info.context)


Own = ContrastBlock | RoiBlock | PairsBlock | ParametricBlock | MapBlock | EquivalenceBlock | JointBlock
Plain = Own | PatternBlock | SubjectsBlock | SpecialistsBlock
"""Tests whose effects are named under `effect`."""
Known = GeometryBlock | IntegrationBlock | CausalBlock | PatchingBlock | CircuitBlock | WrittenBlock | Plain
TestBlock = Annotated[
    SerializeAsAny[Annotated[Known, Field(discriminator="test")]],
    WrapValidator(_test_block),
]
Effect = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]


class Analysis(Strict):
    """An analysis file."""

    schema_: Annotated[Literal["neurosae/analysis/1"], Field(alias="schema")]
    """Write `schema: neurosae/analysis/1`."""
    name: FileName
    """Name of the study, and of its folder under results/."""
    design: StudyPath | None = None
    """The design file, relative to this file; only `train` does without."""
    seed: Natural = 0
    """Seed of everything random."""
    model: ModelBlock
    """The language model: {name: embedded}."""
    sites: dict[FileName, Site] = Field(min_length=1)
    """Sites by name: {late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}}."""
    positions: Positions = Positions()
    """Which tokens are analysed."""
    inference: Inference = Inference()
    """How hypotheses are tested."""
    effects: dict[FileName, Effect] = Field(default_factory=dict)
    """Effects by name, as weights: {subject: {pl: 1, sg: -1}}."""
    tests: dict[FileName, TestBlock] = Field(default_factory=dict)
    """Tests by name, run in this order."""
    power: Power = Power()
    """How many items a study of this kind needs; read by `neurosae power`."""
    examine: ExamineBlock | None = None
    """Features to look at: examples, promoted tokens, rules, labels."""
    report: Report = Report()
    """Title of the report, and how many features it shows."""

    @field_validator("schema_", mode="before")
    @classmethod
    def _check_schema(cls, value: Any) -> Any:
        if value != SCHEMA:
            fail(text=f"is {describe(value)}; an analysis begins with `schema: {SCHEMA}`.")
        return value

    @field_validator("effects", mode="before")
    @classmethod
    def _check_effects(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            fail_all(problem for name, effect in value.items() for problem in shape_problems(effect, (name,)))
        return value

    @model_validator(mode="after")
    def _check(self) -> Analysis:
        fail_all(_own_problems(self))
        return self


def load_analysis(path: str | Path, tests: Mapping[str, tuple[type[Strict], str]] = TESTS) -> Analysis:
    """Read an analysis file and compare it with its design.

    Left-out `positions.regions` are filled in (the regions that tests name), and with `align: start` or `end` a
    region of a test becomes the pair `<region>@start`, `<region>@end`.

    Parameters
    ----------
    path : a YAML file that begins with `schema: neurosae/analysis/1`
    tests : kind of test -> (schema, module); add your own to `TESTS`

    Raises
    ------
    SpecError
        In one line: file, line, field, what is wrong, and what would be right.

    Examples
    --------
    >>> import tempfile
    >>> text = '''
    ... schema: neurosae/analysis/1
    ... name: dictionaries
    ... model: {name: embedded}
    ... sites: {late: {hook: blocks.3.hook_resid_post, dictionary: {train: {d_sae: 2048, n_tokens: 1000000}}}}
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "dictionaries.yaml").write_text(text)
    ...     load_analysis(Path(folder) / "dictionaries.yaml").sites["late"].dictionary.train.k
    32
    """
    designs: list[Design] = []

    def check(analysis: Analysis) -> Iterator[Problem]:
        if analysis.design is None:
            return
        if not is_file(analysis.design):
            guess = similar_file(analysis.design) or " Paths are relative to the file that names them."
            yield ("design",), f"there is no file {short(str(analysis.design), 300)}.{guess}"
            return
        designs.append(load_design(analysis.design))
        yield from _design_problems(analysis, designs[0])

    context = {"folder": Path(path).parent, "tests": tests}
    analysis = load_yaml(path, Analysis, context=context, check=check)
    return _completed(analysis, designs[0]) if designs else analysis


def _completed(analysis: Analysis, design: Design) -> Analysis:
    positions, tests = analysis.positions, dict(analysis.tests)
    if positions.locked:
        for name, block in tests.items():
            tests[name] = block.model_copy(update={"region": tuple(_pair(block.region))} if _regions(block) else {})
    if positions.regions is None:
        named = dict.fromkeys(region.partition("@")[0] for block in tests.values() for region in _regions(block))
        everything = () if positions.align == "middle_out" else region_names(design)
        named.pop(WHOLE, None)
        positions = positions.model_copy(update={"regions": tuple(named) or everything})
    return analysis.model_copy(update={"positions": positions, "tests": tests})


def _pair(regions: tuple[str, ...]) -> dict[str, None]:
    pairs = ((name,) if "@" in name else (f"{name}@start", f"{name}@end") for name in regions)
    return dict.fromkeys(name for pair in pairs for name in pair)


def _regions(block: Any) -> tuple[str, ...]:
    """Regions whose responses a block reads; tests that run the model itself read none."""
    if isinstance(block, CircuitBlock | PatchingBlock):
        return ()
    given = getattr(block, "region", ())
    return (given,) if isinstance(given, str) else tuple(given or ())


# ------------------------------------------------------------------ references between the sections


def _position_problems(analysis: Analysis) -> Iterator[Problem]:
    positions = analysis.positions
    several = positions.window is not None or positions.align == "middle_out"
    if positions.align == "dtw" and analysis.tests:
        text = "dtw warps positions, for figures only; no test is valid on them, use region, start or end for tests."
        yield ("positions", "align"), text
    for site in positions.reference:
        yield from _site_problems(site, analysis.sites, ("positions", "reference"))
    if several and "tokens" not in positions.model_fields_set:
        yield ("positions",), "asks for several positions; say what becomes of them: `tokens: all` keeps them apart."


OWN_PROBLEMS: tuple[tuple[Any, Any], ...] = (
    (MapBlock, map_problems),
    (SubjectsBlock, subject_problems),
    (SpecialistsBlock, specialist_problems),
    (IntegrationBlock, integration_problems),
    (CausalBlock, causal_problems),
    (CircuitBlock, circuit_problems),
    (PatchingBlock, patching_problems),
    (WrittenBlock, written_problems),
    (IntegrationBlock | CausalBlock | WrittenBlock, choice_problems),
)
"""Kinds of test, and what is wrong with one inside its analysis."""
DESIGN_PROBLEMS: tuple[tuple[Any, Any], ...] = (
    (ParametricBlock, parametric_problems),
    (PatternBlock, pattern_problems),
    (IntegrationBlock, integration_design_problems),
    (CausalBlock, causal_design_problems),
    (CircuitBlock, circuit_design_problems),
    (PatchingBlock, patching_design_problems),
    (WrittenBlock, written_design_problems),
    (GeometryBlock, geometry_problems),
)
"""Kinds of test, and what is wrong with one given the design."""


def _own_problems(analysis: Analysis) -> Iterator[Problem]:
    positions = analysis.positions
    yield from _position_problems(analysis)
    if analysis.tests and analysis.design is None:
        yield ("tests",), "need a design; name its file, `design: ../stimuli/….yaml`."
    for name, block in analysis.tests.items():
        where: Where = ("tests", name)
        for site in getattr(block, "sites", None) or ():
            yield from _site_problems(site, analysis.sites, (*where, "sites"))
        for inner, effect in _effects_used(block):
            if effect not in analysis.effects:
                hint = unknown("effect", short(effect), analysis.effects).partition("'.")[2]
                yield (*where, *inner), f"uses effect '{effect}', which is not under `effects:`.{hint}"
        yield from _lock_problems(block, positions, where)
        may = ContrastBlock | RoiBlock | MapBlock | ParametricBlock | PatchingBlock | SpecialistsBlock
        given = isinstance(block, may) and getattr(block, "features", None) is not None
        if given or chooses_earlier(block):
            yield from choice_problems(name, analysis)
        for kind, problems in OWN_PROBLEMS:
            if isinstance(block, kind):
                yield from problems(name, analysis)
    parts = {f"test '{name}'": block.model_dump(mode="json") for name, block in analysis.tests.items()}
    yield from score_problems(positions, {**parts, "inference": analysis.inference.model_dump(mode="json")})
    yield from family_problems(analysis)
    yield from regression_problems(analysis)
    yield from power_problems(analysis.power, effect=analysis.effects, site=analysis.sites)
    yield from examine_problems(analysis)


def _effects_used(block: Any) -> Iterator[tuple[Where, str]]:
    if isinstance(block, Plain):
        yield from (((), effect) for effect in effects_named(block))
    if isinstance(block, RoiBlock) and block.features.orthogonal is not None:
        yield ("features",), block.features.orthogonal
    if isinstance(block, IntegrationBlock):
        yield from ((("parts",), part) for part in block.parts)
    yield from geometry_effects(block)
    yield from causal_effects(block)
    yield from written_effects(block)
    yield from named_effects(block)


def _site_problems(site: str, sites: Mapping[str, Site], where: Where) -> Iterator[Problem]:
    base, _, layer = site.rpartition(".")
    if site not in sites and not (layer.isdecimal() and base in sites and "*" in sites[base].hook):
        yield where, unknown("site", short(site), sites)


def _lock_problems(block: Any, positions: Positions, where: Where) -> Iterator[Problem]:
    named = _regions(block)
    for region in named:
        name, at, lock = region.partition("@")
        if not at:
            continue
        if lock not in ("start", "end"):
            yield (*where, "region"), f"'{region}' is no region; write {name}@start or {name}@end."
        elif not positions.locked:
            yield (*where, "region"), f"'{region}' exists only with positions.align: start or end; write {name}."
        elif not positions.single_lock and not {name, f"{name}@start", f"{name}@end"} - {region} & {*named}:
            text = f"uses only '{region}' of a pair; name {name} (both), or set positions.single_lock: true."
            yield (*where, "region"), text


# ------------------------------------------------------------------ references to the design


def _design_problems(analysis: Analysis, design: Design) -> Iterator[Problem]:
    for name, effect in analysis.effects.items():
        yield from effect_problems(effect, design, ("effects", name))
    yield from nuisance_problems(analysis, design.covariates)
    known = region_names(design)
    for region in analysis.positions.regions or ():
        if region not in known:
            yield ("positions", "regions"), unknown("region", short(region), known)
    yield from power_problems(analysis.power, region=dict.fromkeys(known))
    yield from examine_design_problems(analysis, design.factors)
    for name, block in analysis.tests.items():
        where: Where = ("tests", name)
        if getattr(block, "split", "test") == "localizer" and design.partition is None:
            text = "the design sets no items apart; give it a partition, {localizer: 24, seed: 7}, say."
            yield (*where, "split"), text
        for region in _regions(block):
            yield from _region_problems(region, known, analysis.positions, where=(*where, "region"))
        for kind, problems in DESIGN_PROBLEMS:
            if isinstance(block, kind):
                yield from problems(name, analysis, design)


def _region_problems(region: str, known: tuple[str, ...], positions: Positions, *, where: Where) -> Iterator[Problem]:
    name = region.partition("@")[0]
    if positions.align == "middle_out":
        if region != WHOLE:
            yield where, f"with positions.align: middle_out there is one region, {WHOLE}; write it instead of {region}."
    elif name not in known:
        yield where, unknown("region", short(name), known)
    elif positions.regions is not None and name not in positions.regions:
        text = f"region '{name}' is not under positions.regions, so it never leaves the model; add it there."
        yield where, text
