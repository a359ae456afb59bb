"""TaylorADMM, DlADMM and ConsensusADMM as one process would write them, in NumPy, over all rows at once."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def nearest_relu(a: Array, m: Array, gamma: float, beta: float) -> Array:
    above, below = np.maximum((gamma * a + beta * m) / (gamma + beta), 0), np.minimum(m, 0)
    cost = [gamma * (a - relu(z)) ** 2 + beta * (z - m) ** 2 for z in (above, below)]
    return np.where(cost[0] <= cost[1], above, below)


def nearest_output(output: str, y: Array, b: Array, beta: float, start: Array) -> Array:
    if output == "squared":
        return (y + beta * b) / (1 + beta)
    if output == "hinge":
        s, t = b + 1 / (2 * beta), b - 1 / (2 * beta)
        return np.where(y == 1, np.where(s <= 1, s, np.where(b >= 1, b, 1)), np.where(t >= 0, t, np.where(b <= 0, b, 0)))
    z = ahead = start
    t = 1.0
    for _ in range(10):
        p = np.exp(ahead - ahead.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        following = ahead - (p - y + 2 * beta * (ahead - b)) / (0.5 + 2 * beta)
        before, t = t, (1 + np.sqrt(1 + 4 * t * t)) / 2
        ahead, z = following + (before - 1) / t * (following - z), following
    return z


def loss(output: str, z: Array, y: Array) -> Array:
    if output == "squared":
        return ((z - y) ** 2).sum(1)
    if output == "hinge":
        return np.maximum(np.where(y == 1, 1 - z, z), 0).sum(1)
    return np.log(np.exp(z).sum(1)) - (y * z).sum(1)


def rms(*arrays: Array) -> float:
    return float(np.sqrt(np.concatenate([x.ravel() for x in arrays] or [np.zeros(1)]).__pow__(2).mean()))


def ridged(target: Array, a: Array, ridge: float, weights: Array, near: Array | float = 0.0) -> Array:
    gram = (a * weights).T @ a
    r = ridge * np.diag(gram).mean()
    return np.linalg.solve(gram + r * np.eye(len(gram)), ((target * weights).T @ a + r * near).T).T


def taylor(x, y, layers, sweeps, *, gamma, beta, output, multiplier, warm, ridge, bias, weights):
    """Weights and biases after the sweeps, from a forward start; and the last sweep's figures."""
    w, b = [w.copy() for w, _ in layers], [c * bias for _, c in layers]
    last, a, z = len(w) - 1, [x], []
    for k in range(last):
        z.append(a[k] @ w[k].T + b[k])
        a.append(relu(z[k]))
    z.append(y.copy())
    u = np.zeros_like(y)
    exact = multiplier == "exact"

    def wanted(k):
        return z[k] + u / (2 * beta[k]) if exact and k == last else z[k]

    def fit(k):
        if bias:
            found = ridged(wanted(k), np.hstack([a[k], np.ones((len(x), 1))]), ridge, weights)
            w[k], b[k] = found[:, :-1], found[:, -1]
        else:
            w[k] = ridged(wanted(k), a[k], ridge, weights)

    fit(last)
    figures, m = {}, np.zeros_like(y)
    for sweep in range(1, sweeps + 1):
        cost, gaps, before = 0.0, [], m
        for k in range(last):
            fit(k)
            v, c = w[k + 1], beta[k + 1]
            matrix = c * v.T @ v + gamma[k] * np.eye(v.shape[1])
            a[k + 1] = np.linalg.solve(matrix, (c * (wanted(k + 1) - b[k + 1]) @ v + gamma[k] * relu(z[k])).T).T
            z[k] = nearest_relu(a[k + 1], a[k] @ w[k].T + b[k], gamma[k], beta[k])
            gaps.append(a[k + 1] - relu(z[k]))
            apart = z[k] - a[k] @ w[k].T - b[k]
            cost += gamma[k] * (gaps[-1] ** 2).sum() + beta[k] * (apart**2).sum()
        fit(last)
        m = a[last] @ w[last].T + b[last]
        z[last] = nearest_output(output, y, m - u / (2 * beta[last]), beta[last], z[last])
        if multiplier != "none" and sweep > warm:
            u += beta[last] * (2 if exact else 1) * (z[last] - m)
        cost += loss(output, z[last], y).sum() + beta[last] * ((z[last] - m) ** 2).sum()
        residuals = {"primal": rms(z[last] - m), "dual": 2 * beta[last] * rms(m - before)}
        figures = {"objective": cost / len(x), **residuals, "multiplier": rms(u), "hidden": rms(*gaps)}
    return (w, b), figures


def dladmm(x, y, layers, sweeps, *, nu, rho, output, update, ridge, accelerate, weights):
    """Weights and biases after the sweeps, and the last sweep's figures."""
    w, b = [w.copy() for w, _ in layers], [c.copy() for _, c in layers]
    last, a, z = len(w) - 1, [x], []
    for k in range(last + 1):
        z.append(a[k] @ w[k].T + b[k])
        if k < last:
            a.append(relu(z[k]))
    u = np.zeros_like(y)
    theta = np.ones((2, last + 1))
    flat = lambda: np.concatenate([v.ravel() for pair in zip(w, b, strict=True) for v in pair])  # noqa: E731

    def put(vector):
        at = 0
        for v in (v for pair in zip(w, b, strict=True) for v in pair):
            v[...] = vector[at : at + v.size].reshape(v.shape)
            at += v.size

    def penalty(k):
        return rho if k == last else nu

    def wanted(k):
        return z[k] + u / rho if k == last else z[k]

    def step(which, k, slope, model):
        """A gradient step, by the paper's own test: phi(new) <= phi + <slope, step> + theta/2 |step|^2."""
        theta[which, k] /= 2
        while True:
            move = -slope / theta[which, k]
            if model(move) <= (slope * move).sum() + theta[which, k] / 2 * (move**2).sum() + 1e-15:
                return move
            theta[which, k] *= 2

    def inputs(k):
        c, h = penalty(k), relu(z[k - 1])
        if update == "exact":
            matrix = c * w[k].T @ w[k] + nu * np.eye(w[k].shape[1])
            a[k] = np.linalg.solve(matrix, (c * (wanted(k) - b[k]) @ w[k] + nu * h).T).T
            return
        missing, apart = a[k] @ w[k].T + b[k] - wanted(k), a[k] - h

        def model(move):
            change = ((missing + move @ w[k].T) ** 2 - missing**2).sum() * c / 2
            return change + nu / 2 * ((apart + move) ** 2 - apart**2).sum()

        a[k] = a[k] + step(1, k, c * missing @ w[k] + nu * apart, model)

    def output_of(k):
        m = a[k] @ w[k].T + b[k]
        if k < last:
            z[k] = nearest_relu(a[k + 1], m, nu / 2, nu / 2)
        else:
            z[k] = nearest_output(output, y, m - u / rho, rho / 2, z[k])

    def biases(k):
        b[k] = ((wanted(k) - a[k] @ w[k].T) * weights).sum(0) / weights.sum()

    def matrix_of(k):
        if update == "exact":
            w[k] = ridged(wanted(k) - b[k], a[k], ridge, weights, near=w[k])
            return
        missing, c = a[k] @ w[k].T + b[k] - wanted(k), penalty(k)
        w[k] = w[k] + step(0, k, c * missing.T @ a[k], lambda move: c / 2 * ((missing + a[k] @ move.T) ** 2 - missing**2).sum())

    before, t = flat(), 1.0
    figures, m = {}, np.zeros_like(y)
    for _ in range(sweeps):
        last_m = m
        start = flat()
        if accelerate:
            following = (1 + np.sqrt(1 + 4 * t * t)) / 2
            begun = start + (t - 1) / following * (start - before)
            put(begun)
            before, t = start, following
        for k in reversed(range(last + 1)):
            if k < last:
                inputs(k + 1)
            output_of(k)
            biases(k)
            matrix_of(k)
        for k in range(last + 1):
            matrix_of(k)
            biases(k)
            output_of(k)
            if k < last:
                inputs(k + 1)
        m = a[last] @ w[last].T + b[last]
        u += rho * (z[last] - m)
        gaps = [a[k + 1] - relu(z[k]) for k in range(last)]
        cost = loss(output, z[last], y).sum() + rho / 2 * ((z[last] - m) ** 2).sum() + nu / 2 * sum((g**2).sum() for g in gaps)
        cost += nu / 2 * sum(((z[k] - a[k] @ w[k].T - b[k]) ** 2).sum() for k in range(last))
        residuals = {"primal": rms(z[last] - m), "dual": rho * rms(m - last_m)}
        figures = {"objective": cost / len(x), **residuals, "multiplier": rms(u), "hidden": rms(*gaps)}
        if accelerate and (begun - flat()) @ (flat() - start) > 0:
            t = 1.0
    return (w, b), figures
