r"""L1-penalized logistic regression of few features, fast enough to be repeated inside every relabelling.

    min over (b0, b)  sum_i w_i log(1 + exp(-y_i (b0 + x_i'b))) + lambda sum_j |b_j|,   y = +1, -1,

the intercept without a penalty, w_i = n / (2 n_class), so that both classes weigh the same: where folds do not look at
labels, a class that is frequent in training is rare among the held-out rows, and plain weights would predict noise
below chance. Solved by coordinate descent on a quadratic bound: the second derivative of the loss along
coordinate j is at most 1/4 sum_i w_i x_ij^2, so every step lowers the objective and none has to be tried out.
"""

from __future__ import annotations

import numpy as np

from neurosae.stats.kernels import compiled

SWEEPS, TOLERANCE = 1000, 1e-5


@compiled()
def fit_logistic(X, y, penalty):
    """Coefficients (k + 1,), the intercept last; X of shape (n, k), y of +1 and -1.

    Examples
    --------
    >>> X, y = np.array([[1.0], [0.5], [-0.5], [-1.0]]), np.array([1.0, 1.0, -1.0, -1.0])
    >>> fit_logistic(X, y, 100.0).tolist()  # a large penalty leaves nothing
    [0.0, 0.0]
    >>> bool(fit_logistic(X, y, 0.5)[0] > 0.5)
    True
    """
    n, k = X.shape
    n_plus = max((y > 0).sum(), 1)
    w = np.where(y > 0, n / (2.0 * n_plus), n / (2.0 * max(n - n_plus, 1)))
    b, f, bound = np.zeros(k + 1), np.zeros(n), np.full(k + 1, 0.25 * w.sum())
    for j in range(k):
        bound[j] = 0.25 * (w * X[:, j] ** 2).sum()
    for _ in range(SWEEPS):
        largest = 0.0
        for j in range(k + 1):
            if bound[j] <= 0.0:
                continue
            slope = 0.0
            for i in range(n):
                slope -= w[i] * y[i] * (X[i, j] if j < k else 1.0) / (1.0 + np.exp(y[i] * f[i]))
            new = b[j] - slope / bound[j]
            if j < k:
                cut = penalty / bound[j]
                new = max(new - cut, 0.0) if new > 0.0 else min(new + cut, 0.0)
            step = new - b[j]
            if step != 0.0:
                for i in range(n):
                    f[i] += step * (X[i, j] if j < k else 1.0)
                b[j] = new
            largest = max(largest, abs(step) * np.sqrt(bound[j]))
        if largest < TOLERANCE:
            break
    return b


@compiled()
def fold_scores(parts, y, penalty):
    """Scores of held-out rows (h,); parts = (training rows (n, k), held-out rows (h, k)), y of the training rows.

    Features are standardized by the training rows alone; one that is constant there has no say.
    """
    train, held = parts
    n, k = train.shape
    X, mean, scale = np.empty((n, k)), np.zeros(k), np.ones(k)
    for j in range(k):
        for i in range(n):
            mean[j] += train[i, j] / n
        total = 0.0
        for i in range(n):
            X[i, j] = train[i, j] - mean[j]
            total += X[i, j] * X[i, j]
        if total > 0.0:
            scale[j] = np.sqrt(total / n)
        for i in range(n):
            X[i, j] /= scale[j]
    b = fit_logistic(X, y, penalty)
    out = np.full(len(held), b[k])
    for i in range(len(held)):
        for j in range(k):
            out[i] += b[j] * (held[i, j] - mean[j]) / scale[j]
    return out


@compiled()
def predict_many(parts, choice, penalty):
    """Held-out scores for many labellings and numbers of features, (n_labellings, n_k, h).

    parts = (training rows (n, m), held-out rows (h, m)); choice = (labels of the training rows (n_labellings, n), best
    features of each labelling (n_labellings, most), numbers of features (n_k,)).
    """
    train, held = parts
    labels, best, sizes = choice
    out = np.empty((len(labels), len(sizes), len(held)))
    for b in range(len(labels)):
        for q in range(len(sizes)):
            few = best[b, : sizes[q]]
            out[b, q] = fold_scores((train[:, few], held[:, few]), labels[b], penalty)
    return out
