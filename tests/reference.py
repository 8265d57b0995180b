"""The paper's equations written out in NumPy float64, independent of the package."""

import numpy as np


def penalty(variances, alpha, tau, beta, form="nearest", kappa_from=None):
    """The penalty in one of its forms, eq. (2) term by term, from all N variances.

    `kappa_from` gives the variances that fix κ, where those are held constant.
    """
    fixed = variances if kappa_from is None else kappa_from
    width = len(variances)
    n = np.arange(tau, width + 1)
    tail = variances[tau - 1 :]
    if form == "log":
        band = fixed[tau - 1 : 4 * tau]
        log_kappa = np.mean(np.log(band * n[: len(band)] ** alpha))
        return beta / width * np.sum((np.log(tail * n**alpha) - log_kappa) ** 2)
    if form == "nearest":
        # Least squares: the scale 1/κ for which λₙ n^α / κ is nearest to one.
        levels = fixed[tau - 1 :] * n**alpha
        scale = np.linalg.lstsq(levels[:, None], np.ones(len(n)))[0][0]
        return beta / width * np.sum((scale * tail * n**alpha - 1) ** 2)
    total = 0.0
    for n in range(tau, width + 1):
        ratio = variances[n - 1] / (fixed[tau - 1] * (n / tau) ** -alpha)
        total += (ratio - 1) ** 2
        # At n = τ the ratio is 1 by definition of κ: the kink adds nothing.
        if n > tau:
            total += max(0.0, ratio - 1)
    return beta / width * total


def authors_penalty(variances, alpha, beta, start=11):
    """The form of the authors' code: anchored on the 11th, summed from the 12th."""
    ordered = np.sort(variances)[::-1]
    n = np.arange(start + 1, len(ordered) + 1)
    target = ordered[start - 1] * start**alpha * n**-alpha
    ratio = ordered[start:] / target
    return beta / len(ordered) * np.sum((ratio - 1) ** 2 + np.maximum(0, ratio - 1))


def variances(activity, basis):
    """Eq. (5): the diagonal of VᵀΣV, with Σ formed."""
    flat = np.asarray(activity, "float64").reshape(len(activity), -1)
    return np.diag(basis.T @ np.cov(flat, rowvar=False) @ basis)


def eigenvectors(activity):
    """Eigenvectors of the covariance in columns, by eigenvalue, largest first."""
    flat = np.asarray(activity, "float64").reshape(len(activity), -1)
    return np.linalg.eigh(np.cov(flat, rowvar=False))[1][:, ::-1]


def eigenvalues(samples):
    """Those of the covariance, largest first."""
    return np.linalg.eigvalsh(np.cov(samples, rowvar=False))[::-1]


def samples(activity, reduction):
    """The samples of units, taken one example and one position at a time."""
    rows = []
    for example in activity:
        positions = [example[index] for index in np.ndindex(example.shape[:-1])]
        if reduction == "flatten":
            rows.append(np.concatenate(positions))
        elif reduction == "channels":
            rows.extend(positions)
        else:
            rows.append(sum(positions) / len(positions))
    return np.stack(rows)


def orthonormal(units, rng):
    return np.linalg.qr(rng.normal(size=(units, units)))[0]


def directional_derivative(function, x, direction, step=1e-5):
    """Central finite difference."""
    return (function(x + step * direction) - function(x - step * direction)) / (
        2 * step
    )


def assert_is_gradient(gradient, function, x, rng, tolerance=1e-3):
    """Of a scalar function in NumPy, along five random directions."""
    directions = rng.normal(size=(5, *x.shape))
    found = [np.sum(gradient * direction) for direction in directions]
    expected = [directional_derivative(function, x, each) for each in directions]
    error = np.linalg.norm(np.subtract(found, expected))
    assert error <= tolerance * np.linalg.norm(expected)
