"""A stand-in for AlpacaEval's `df_gamed.csv`, laid where the Hub's client keeps downloads, and the GLM again.

The numbers are drawn, not AlpacaEval's: they show that its code gets and uses the file, not its figures.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

NUM = 805
GAMED_WEIGHT = 0.2 / 2  # of each of two baselines


def write(cache, *, slope=-1.5, difficulty_slope=1.0, seed=0):
    """Write the file into a Hub cache; return its rows, whose preferences are the GLM's own."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(scale=1.5, size=NUM)
    baselines = []
    for model in ("concise", "verbose"):
        lengths = rng.normal(loc=1.0 if model == "concise" else -1.0, size=NUM)
        logits = slope * np.tanh(lengths) + difficulty_slope * difficulty
        columns = {"index": range(NUM), "preference": expit(logits), "std_delta_len": lengths}
        rest = {"instruction_difficulty": difficulty, "not_gamed_baseline": False}
        baselines.append(pd.DataFrame({"model": model, **columns, **rest}))
    gamed = pd.concat(baselines)
    folder = cache / "datasets--tatsu-lab--alpaca_eval"
    revision = "0" * 40
    (folder / "snapshots" / revision).mkdir(parents=True)
    gamed.to_csv(folder / "snapshots" / revision / "df_gamed.csv", index=False)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    return gamed


def length_controlled(annotations, gamed):
    """Fit the GLM by minimising its loss, without penalty, and predict at equal lengths, in percent."""
    difficulty = gamed["instruction_difficulty"].to_numpy()[:NUM]
    lengths = np.array([len(row["output_1"]) - len(row["output_2"]) for row in annotations], dtype=float)
    own = np.column_stack([np.tanh(lengths / lengths.std(ddof=1)), difficulty, np.ones(NUM)])
    drawn = [np.tanh(gamed["std_delta_len"]), gamed["instruction_difficulty"], np.zeros(2 * NUM)]
    features = np.vstack([own, np.column_stack(drawn)])
    wins = np.concatenate([[row["preference"] - 1 for row in annotations], gamed["preference"]])
    weights = np.repeat([1.0, GAMED_WEIGHT], [NUM, 2 * NUM])

    def loss(coefficients):
        logits = features @ coefficients
        return weights @ (wins * np.logaddexp(0, -logits) + (1 - wins) * np.logaddexp(0, logits))

    _, slope, intercept = minimize(loss, np.zeros(3), tol=1e-10).x
    return 100 * expit(slope * difficulty + intercept).mean()
