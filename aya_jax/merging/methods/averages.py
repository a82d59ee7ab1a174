"""Running averages of one training's checkpoints, as the weights of a linear merge."""


def uniform(count: int) -> tuple[float, ...]:
    """Return the weights of a plain mean (stochastic weight averaging, arXiv 1803.05407)."""
    return (1.0 / count,) * count


def exponential(count: int, decay: float) -> tuple[float, ...]:
    """Return the weights of an exponential moving average, the oldest checkpoint first.

    The last of `a_1 = theta_1, a_i = decay a_(i-1) + (1 - decay) theta_i`: `decay^(n-1)` for the oldest, and
    `(1 - decay) decay^(n-i)` for the i-th.
    """
    newer = ((1.0 - decay) * decay ** (count - i) for i in range(2, count + 1))
    return (decay ** (count - 1), *newer)
