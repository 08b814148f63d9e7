#!/usr/bin/env python3
"""Golden values of intervals and paired tests, by scipy and statsmodels.

Writes  crates/core/tests/golden/statistics.json
Run     VENV/bin/python oracles/intervals.py [OUT_FILE]
        VENV needs only scipy and statsmodels (`pip install scipy statsmodels`); it takes seconds.

Each value comes from code that shares nothing with ours:

  normal_quantile      scipy.stats.norm.ppf
  student_t_quantile   scipy.stats.t.ppf
  wilson               statsmodels proportion_confint(method="wilson")
  mcnemar              statsmodels mcnemar(exact=True)
  tango                the score test's constrained likelihood maximised numerically, its
                       statistic inverted by scipy.optimize.brentq (no closed form used)
  tango_published      worked examples of Tango 1998 (Statistics in Medicine 17, 891-908), sections
                       6.1 (soft contact lenses) and 6.2 (sleeping difficulties), three decimals as printed
  paired_t             scipy.stats.ttest_rel(...).confidence_interval
  clustered            statsmodels OLS on the units, cov_type="cluster", t distribution
  median               statistics.median
"""
import json
import math
import pathlib
import sys

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/core/tests/golden/statistics.json"


def tango_statistic(b, c, n, delta):
    """(b - c - n*delta) / standard deviation under the hypothesis, cells by numeric ML."""
    rest = n - b - c

    def minus_log_likelihood(q):
        cells = [(b, q + delta), (c, q), (rest, 1 - 2 * q - delta)]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-14})
    best = min([low, high, found.x], key=minus_log_likelihood)
    # Golden section stops at about sqrt(eps): polish with the root of the derivative.
    def slope(q):
        return (b / (q + delta) if b else 0) + (c / q if c else 0) - (2 * rest / (1 - 2 * q - delta) if rest else 0)
    if low < best < high:
        near, far = low + 1e-15 + (best - low) * 0.5, high - 1e-15 - (high - best) * 0.5
        if slope(near) * slope(far) < 0:
            best = optimize.brentq(slope, near, far, xtol=1e-16)
    variance = n * (2 * best + delta - delta * delta)
    distance = b - c - n * delta
    return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(1e6 if distance else 0.0, distance)


def tango(b, c, n, confidence):
    z = stats.norm.ppf(0.5 + confidence / 2)
    estimate = (b - c) / n
    edge = 1 - 1e-9
    estimate = min(max(estimate, -edge), edge)

    def end(side, far):
        f = lambda d: tango_statistic(b, c, n, d) - side * z
        a, e = sorted([estimate, far])
        if a == e or f(a) * f(e) > 0:
            return float(far / edge)
        return optimize.brentq(f, a, e, xtol=1e-13)

    return [end(1, -edge), end(-1, edge)]


def clustered(clusters, confidence):
    y = np.concatenate([np.asarray(c) for c in clusters])
    groups = np.concatenate([np.full(len(c), i) for i, c in enumerate(clusters)])
    fit = sm.OLS(y, np.ones_like(y)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True, "df_correction": True}, use_t=True)
    low, high = fit.conf_int(1 - confidence)[0]
    return {"value": float(fit.params[0]), "interval": [float(low), float(high)]}


def main():
    rng = np.random.default_rng(20261124)
    probabilities = [1e-300, 1e-20, 1e-6, 0.001, 0.025, 0.07499, 0.0751, 0.3, 0.5, 0.7, 0.95, 0.975, 0.995, 0.999999]
    trials = [(0, 1), (1, 1), (0, 10), (10, 10), (1, 10), (5, 10), (81, 263), (950, 1000), (999, 1000), (3, 1_000_000)]
    tables = [(0, 0, 0, 10), (10, 0, 0, 0), (3, 9, 3, 17), (43, 0, 1, 0), (0, 1, 0, 43), (0, 10, 0, 0), (36, 12, 2, 0),
              (53, 25, 3, 19), (200, 700, 12, 88), (900, 12, 9, 79), (5, 0, 5, 0), (0, 5, 5, 0), (1, 1, 1, 1), (0, 0, 7, 3)]
    paired = [(rng.normal(2, 1, n).round(6).tolist(), rng.normal(1.5, 1, n).round(6).tolist()) for n in (2, 3, 12, 200)]
    groups = [[rng.normal(m, 1, k).round(6).tolist() for m, k in zip(rng.normal(0.3, 0.5, g), rng.integers(1, 30, g))]
              for g in (2, 5, 40)]
    medians = [[3.0], [1.0, 9.0], [5.0, 1.0, 3.0], [4.0, 1.0, 3.0, 2.5]]
    ps = lambda values: [float(v) for v in values]
    golden = {
        "generator": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__},
        "normal_quantile": [[p, float(stats.norm.ppf(p))] for p in probabilities],
        "student_t_quantile": [[p, df, float(stats.t.ppf(p, df))] for p in (0.01, 0.5, 0.9, 0.975, 0.9995)
                               for df in (1, 2, 3, 7.5, 30, 999, 1e6)],
        "wilson": [{"successes": k, "n": n, "confidence": c, "interval": ps(proportion_confint(k, n, 1 - c, "wilson"))}
                   for k, n in trials for c in (0.9, 0.95, 0.99)],
        "tango": [{"table": t, "confidence": c, "interval": tango(t[1], t[2], sum(t), c)}
                  for t in tables if t[1] + t[2] for c in (0.9, 0.95)],
        "tango_published": [
            {"table": [0, 9, 3, 20], "confidence": 0.95, "low": -0.027, "high": 0.390},
            {"table": [43, 0, 1, 0], "confidence": 0.90, "low": -0.096},
        ],
        "mcnemar": [{"table": t, "p": float(mcnemar([[t[0], t[1]], [t[2], t[3]]], exact=True).pvalue)}
                    for t in tables if t[1] + t[2]],
        "paired_t": [{"first": a, "second": b, "value": float(np.mean(np.subtract(a, b))),
                      "interval": ps(stats.ttest_rel(a, b).confidence_interval(0.95))} for a, b in paired],
        "clustered": [{"clusters": [{"total": float(sum(c)), "units": len(c)} for c in g], **clustered(g, 0.95)}
                      for g in groups],
        "median": [[v, float(np.median(v))] for v in medians],
    }
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
