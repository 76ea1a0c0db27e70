"""Cognitive-neuroscience statistics for the features inside language models.

Verbs make or transform data, nouns test hypotheses and return a table:

>>> import neurosae as ns
>>> sorted(name for name in dir(ns) if name in ("expand", "extract", "contrast", "rsa"))
['contrast', 'expand', 'extract', 'rsa']

Names are imported when they are first used, so `import neurosae` loads neither torch nor anndata.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "neurosae.spec.design": ("load_design",),
    "neurosae.causal.doses": ("natural_doses", "outside_natural_range"),
    "neurosae.causal.edits": ("Edit",),
    "neurosae.causal.outcomes": ("Activation",),
    "neurosae.causal.passes": ("edited_outcomes",),
    "neurosae.causal.patched": ("patching_results",),
    "neurosae.causal.patching": ("Patching", "patch", "patch_grid"),
    "neurosae.causal.replacements": ("Thing",),
    "neurosae.causal.costs": ("neutral_costs",),
    "neurosae.causal.generation": ("Sampling", "continue_texts", "continuation_costs", "generate"),
    "neurosae.causal.prompting": ("beside", "steered_samples"),
    "neurosae.causal.scoring": ("score_texts",),
    "neurosae.causal.removal": ("removal",),
    "neurosae.causal.written": ("generation",),
    "neurosae.spec.analysis": ("load_analysis",),
    "neurosae.spec.blocks": ("TESTS",),
    "neurosae.spec.results": ("check_results", "read_results", "stack", "write_results"),
    "neurosae.cache": ("cache_table", "kept", "prune_cache", "pruned"),
    "neurosae.design.expand": ("expand",),
    "neurosae.design.importers": ("import_design", "write_design"),
    "neurosae.design.checks": ("check",),
    "neurosae.examination": ("examine_study", "parse_features"),
    "neurosae.examine.directions": ("feature_link", "logit_weights", "nearest_features"),
    "neurosae.examine.examples": ("top_examples",),
    "neurosae.examine.rules": ("detect_rule",),
    "neurosae.examine.endpoint": ("Endpoint",),
    "neurosae.examine.summary": ("summarize_examined",),
    "neurosae.examine.labels": ("label_features", "read_labels"),
    "neurosae.examine.tracking": ("track_feature",),
    "neurosae.examine.inversion": ("embedding_cosines", "invert_feature", "swap_scores"),
    "neurosae.extraction.align": ("align",),
    "neurosae.extraction.archive": ("read_archive", "write_archive"),
    "neurosae.extraction.model": ("load_model", "random_control"),
    "neurosae.extraction.collapse": ("collapse",),
    "neurosae.extraction.responses": ("provenance_of",),
    "neurosae.extraction.views": ("category_means", "example_view", "feature_sums", "onsets", "token_courses"),
    "neurosae.extraction.run": ("extract",),
    "neurosae.extraction.signed": ("signed",),
    "neurosae.extraction.sites": ("expand_hook",),
    "neurosae.extraction.source": ("OFFLINE", "find_checkpoint", "is_hub_id"),
    "neurosae.extraction.store": ("stored_responses",),
    "neurosae.dictionary.alternatives": ("fit_dictionary",),
    "neurosae.dictionary.control": ("control_dictionaries",),
    "neurosae.dictionary.decompositions": ("decompose",),
    "neurosae.dictionary.evaluate": ("evaluate_dictionary",),
    "neurosae.dictionary.interaction": ("factor_norms", "pair_strengths"),
    "neurosae.dictionary.interaction_study": ("interaction_gain", "interaction_study"),
    "neurosae.dictionary.pathology": ("pathology",),
    "neurosae.comparison": ("compare_dictionaries", "evaluate_study", "summarize_comparison"),
    "neurosae.report.comparison": ("write_comparison",),
    "neurosae.dictionary.overlap": ("absorption", "decoder_overlap"),
    "neurosae.dictionary.scorecard": ("alive_features", "evaluate_dictionaries", "overlap_table"),
    "neurosae.stats.agreement": ("geometry_agreement", "level_scores", "matched_activations", "set_agreement"),
    "neurosae.stats.probes": ("probe_scores",),
    "neurosae.dictionary.load": ("load_dictionary", "train_sites"),
    "neurosae.dictionary.texts": ("read_texts", "sample_texts"),
    "neurosae.dictionary.sweep": ("train_sweep",),
    "neurosae.dictionary.train": ("train_dictionaries", "train_dictionary"),
    "neurosae.dictionary.vectors": ("read_vectors", "vector_dictionary"),
    "neurosae.examine.activity": ("feature_summary",),
    "neurosae.examine.describe": ("examine_features", "tuning"),
    "neurosae.examine.concepts": ("concept_search", "pooled_texts", "promoting_features", "search_labels"),
    "neurosae.examine.together": ("active_documents", "coactivation_pairs", "community_coactivation"),
    "neurosae.examine.specialists": ("specialists",),
    "neurosae.causal.attribution": ("attribute",),
    "neurosae.causal.attention": ("attention",),
    "neurosae.causal.direct": ("direct_attribution",),
    "neurosae.causal.heads": ("head_scores",),
    "neurosae.causal.lens": ("logit_lens",),
    "neurosae.causal.interventions": ("intervene",),
    "neurosae.causal.joint": ("joint_clamp",),
    "neurosae.stats.calibrate": ("calibrate",),
    "neurosae.stats.combine": ("combine",),
    "neurosae.stats.communities": ("coactivation_communities", "decoder_clusters", "reference_activations"),
    "neurosae.stats.contrast": ("contrast", "null_rate"),
    "neurosae.stats.equivalence": ("equivalence",),
    "neurosae.stats.anova": ("anova",),
    "neurosae.stats.choosing": ("choosing",),
    "neurosae.stats.factorial": ("factorial",),
    "neurosae.stats.integration": ("integration",),
    "neurosae.stats.integration_worlds": ("integration_worlds", "worlds_text"),
    "neurosae.stats.intervals": ("selected_intervals",),
    "neurosae.stats.minimum": ("conjunction",),
    "neurosae.stats.multiplicity": ("holm_over_contrasts",),
    "neurosae.stats.noncentral": ("analytic_power", "items_needed"),
    "neurosae.stats.power": ("power", "recommend"),
    "neurosae.stats.maps": ("effect_map", "set_mean"),
    "neurosae.stats.tfce": ("cosine_graph", "tfce"),
    "neurosae.stats.feature_geometry": ("feature_geometry",),
    "neurosae.stats.searchlight": ("decoder_neighbours", "searchlight"),
    "neurosae.stats.temporal": ("temporal_rsa",),
    "neurosae.stats.model_comparison": ("as_result", "compare_models", "dual_bootstrap"),
    "neurosae.stats.relabel_conditions": ("permute_conditions",),
    "neurosae.stats.resample": ("bootstrap_rdms",),
    "neurosae.stats.parametric": ("parametric",),
    "neurosae.stats.rsa": ("model_rdms", "rdms", "rsa"),
    "neurosae.stats.second_order": ("cka", "second_order"),
    "neurosae.stats.pairs": ("pairs",),
    "neurosae.stats.selection": ("roi",),
    "neurosae.stats.subjects": ("over_subjects", "prevalence"),
    "neurosae.stats.across_subjects": ("across_subjects",),
    "neurosae.stats.simulate": ("Firing", "Planted", "simulate"),
    "neurosae.stats.worlds": ("world",),
    "neurosae.report.calibration": ("calibration_page",),
    "neurosae.report.figures_power": ("write_power",),
    "neurosae.report.html": ("write_report",),
    "neurosae.stages": ("Finished", "Study", "open_study", "write_table"),
    "neurosae.study": (
        *("calibrate_methods", "calibrate_study", "check_file", "extract_study", "needs_network"),
        *("power_study", "prepare_study"),
        *("run_analysis", "run_study", "summarize", "test_study", "train_study"),
    ),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'neurosae' has no attribute '{name}'; it has {', '.join(__all__)}.")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
