"""Rows of the tables of a round; pure functions."""


def weighted_means(rows: list[dict[str, float]], weights: list[float]) -> dict[str, float]:
    """Mean of each number over the rows that have it."""
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        found = [(row[name], w) for row, w in zip(rows, weights, strict=True) if name in row]
        means[name] = sum(value * w for value, w in found) / sum(w for _, w in found)
    return means
