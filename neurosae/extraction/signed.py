"""The two halves of a signed value, put together again.

A linear decomposition (principal components, raw coordinates, atoms of K-SVD) is stored as non-negative features: one
for each sign of every value, `var["partner"]` naming the other. A test of the halves would ask twice, and of each half
whether it is active; the value itself is f+ - f-.
"""

from __future__ import annotations

from typing import Any, cast

import anndata
import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.extraction.responses import Responses, add_warnings, each_site, with_provenance

NOTE = (
    "features of this site are signed values (positive minus negative half): a difference is one of the value, density "
    "is the share of values that are not 0, and ratios of activations do not apply"
)


def signed(responses: Responses) -> Responses:
    """Replace the two halves of every signed value by f+ - f-, at the sites whose dictionaries have such halves.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}

    Returns
    -------
    The same type. Where `var` has `partner`, one column is left per pair, under the index of its first half; X may be
    negative there, and the provenance says `signed: true`. Other sites are handed back unchanged.

    Raises
    ------
    DataError
        If `partner` does not pair the columns, as after some of them were taken out.

    Notes
    -----
    The halves are never active together, so the value's density is the sum of theirs. A threshold has no meaning for a
    value and is nan.
    """
    return each_site(responses, _signed)


def _signed(adata: anndata.AnnData) -> anndata.AnnData:
    var = cast(Any, adata.var)
    if "partner" not in var:
        return adata
    feature, partner = var["feature"].to_numpy(), var["partner"].to_numpy()
    place = {int(f): i for i, f in enumerate(feature)}
    other = np.array([place.get(int(p), -1) for p in partner])
    if (other < 0).any() or not np.array_equal(partner[other], feature):
        raise DataError(
            "features and their partners are not paired; call signed() on responses with all features of the site."
        )
    first = np.flatnonzero(feature < partner)
    X = cast(Any, adata.X)
    values = sp.csr_matrix(X[:, first] - X[:, other[first]], dtype=np.float32)
    values.sort_indices()
    kept = var.iloc[first].drop(columns="partner")
    density = var["density"].to_numpy()
    kept = kept.assign(density=(density[first] + density[other[first]]).astype(np.float32), threshold=np.float32("nan"))
    out = anndata.AnnData(values, obs=cast(Any, adata.obs).copy(), var=kept, uns=dict(adata.uns))
    for name in adata.obsm:
        out.obsm[name] = np.asarray(adata.obsm[name])
    return add_warnings(with_provenance(out, signed=True), [NOTE])
