"""Mask annealing: how likely a query keeps its attention mask at each point of the run."""

__all__ = ["annealing_windows", "keep_probability"]


def annealing_windows(num_blocks: int) -> list[tuple[float, float]]:
    """Start and end, as shares of the run, of the annealing of every query block.

    Starts are spread evenly over 1/6..2/3, each window lasts 1/6 of the run.
    """
    starts = [1 / 6 + 0.5 * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
    return [(start, start + 1 / 6) for start in starts]


def keep_probability(progress: float, start: float, end: float, power: float = 0.9) -> float:
    """Share of queries that keep their attention mask: 1 before start, 0 after end."""
    if progress < start:
        return 1.0
    if progress >= end:
        return 0.0
    return (1 - (progress - start) / (end - start)) ** power
