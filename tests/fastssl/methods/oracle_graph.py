"""Label propagation over dense numpy graphs and SciPy's solvers, from the equations of Iscen et al. 2019: nothing of fastssl."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


def graph(x, k, power=3.0):
    """[N, d] features -> [N, N] W and sparse S of the equations, from all cosines; earlier rows first among equals."""
    with np.errstate(invalid="ignore", divide="ignore"):
        v = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = v @ v.T
    np.fill_diagonal(cosine, -np.inf)
    a = np.zeros_like(cosine)
    for i, row in enumerate(cosine):
        for j in np.argsort(-row, kind="stable")[:k]:
            a[i, j] = max(0.0, row[j]) ** power
    w = a + a.T
    d = w.sum(1)
    scale = np.where(d > 0, np.where(d > 0, d, 1) ** -0.5, 0)
    return w, scipy.sparse.csr_matrix(scale[:, None] * w * scale[None])


def spread(s, label, strength, classes, *, alpha=0.99, seeds="share", iterations=20, tolerance=1e-6, exact=False):
    """[N, C] F >= 0, by SciPy's conjugate gradients a class, or solved directly."""
    y = (label[:, None] == np.arange(classes)) * strength[:, None]
    if seeds == "share":
        y = y / np.where(y.sum(0) > 0, y.sum(0), 1)
    system = scipy.sparse.identity(len(label)) - alpha * s
    if exact:
        return np.maximum(scipy.sparse.linalg.spsolve(scipy.sparse.csc_matrix(system), y), 0)
    columns = [scipy.sparse.linalg.cg(system, column, rtol=tolerance, maxiter=iterations)[0] for column in y.T]
    return np.maximum(np.stack(columns, 1), 0)


def judged(f):
    """Of [N, C] F: label, -1 of a row of zeros, and 1 - H / log C, 0 of such a row."""
    total = f.sum(1, keepdims=True)
    q = f / np.where(total > 0, total, 1)
    entropy = -np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(1)
    there = total[:, 0] > 0
    return np.where(there, q.argmax(1), -1), np.where(there, 1 - entropy / np.log(f.shape[1]), 0)
