# %% [markdown]
# # Ten minutes with neurosae
# A question about a language model, from a design to a corrected statistic: which features of the embedded model
# carry the number of a noun, and what is left of it at the verb? Every line runs offline on a laptop:
# `python docs/tour.py`, or cell by cell in an editor that knows `# %%`.

# %%
import tempfile
from pathlib import Path

import neurosae as ns

HERE = Path(__file__).resolve().parent.parent

# %% [markdown]
# ## 1. A design
# Factors are crossed within items; a frame has slots; an item gives the words. `check` says what may be exchanged
# under the null hypothesis, how small a p-value can become, and which regions differ in more than the factor.

# %%
design = ns.load_design(HERE / "stimuli" / "number_agreement.yaml")
stimuli = ns.expand(design)
print(stimuli[["item", "frame", "subject", "attractor", "text", "target", "split"]].head(8).to_string())
print(ns.check(design).text())

# %% [markdown]
# ## 2. Responses
# The model runs once over all stimuli; only the wanted positions leave it. Responses are plain AnnData objects, one
# per site: rows are stimulus x position, columns are features.

# %%
model = ns.load_model("embedded")
site = {"hook": "blocks.1.hook_resid_post", "dictionary": {"embedded": "early"}}
early = ns.load_dictionary(site, model)
responses = ns.extract(stimuli, model, {"early": early}, positions={"regions": ["head", "pre_verb"]})
responses = ns.collapse(ns.align(responses, "region"), "last")
print(responses["early"])

# %% [markdown]
# ## 3. A contrast
# An effect is weights over levels. Whole items are sign-flipped, one flip for all features; the maximum over all
# features gives the family-wise p-value. A feature that cannot be tested has a status and a reason.

# %%
number = {"subject": {"pl": 1, "sg": -1}}
found = ns.contrast(responses, number, region="head", split="localizer", seed=1)
print(found["status"].value_counts().to_string())
top = found[found["p_corr"] <= 0.05].sort_values("value", key=abs, ascending=False)
print(top[["feature", "estimate", "effsize", "ci_low", "ci_high", "p_corr"]].head(5).to_string(index=False))

# %% [markdown]
# The localizer items have chosen; the other items test, so nothing is counted twice.

# %%
held_out = ns.contrast(responses, number, region=["head", "pre_verb"], seed=1)
print(held_out[held_out["p_corr"] <= 0.05].groupby("region", observed=True).size().to_string())

# %% [markdown]
# ## 4. Geometry
# Cross-validated distances between conditions, compared with what the factors predict; rsatoolbox objects in and out.

# %%
geometry = ns.rsa(
    responses,
    models={"number": number, "attractor": {"attractor": {"pl": 1, "sg": -1}}},
    conditions=["subject", "attractor"],
    region="pre_verb",
    seed=1,
)
print(geometry[["effect", "region", "stat", "value", "p_corr"]].to_string(index=False))

# %% [markdown]
# ## 5. The same as one command
# Two YAML files hold everything above; `neurosae run analyses/number_agreement.yaml` writes the report.

# %%
with tempfile.TemporaryDirectory() as folder:
    results = ns.run_analysis(HERE / "analyses" / "number_agreement.yaml", out=folder)
    report = Path(folder) / "number_agreement" / "report.html"
    print(f"{len(results):,} rows in results.parquet; the report has {report.stat().st_size / 1e6:.1f} MB")
