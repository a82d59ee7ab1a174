"""Running averages of one training's checkpoints, as the weights of a linear merge."""


def running(count: int, decay: float | None = None) -> tuple[float, ...]:
    """Return the weights of a running average, the oldest checkpoint first.

    Args:
      count: of checkpoints.
      decay: of an exponential moving average, the last of `a_1 = theta_1`,
        `a_i = decay a_(i-1) + (1 - decay) theta_i`: `decay^(n-1)` for the oldest, and
        `(1 - decay) decay^(n-i)` for the i-th. A plain mean (stochastic weight averaging, arXiv
        1803.05407) if absent.
    """
    if decay is None:
        return (1.0 / count,) * count
    newer = ((1.0 - decay) * decay ** (count - i) for i in range(2, count + 1))
    return (decay ** (count - 1), *newer)
