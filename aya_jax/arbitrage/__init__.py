"""Data arbitrage: a pool of teachers answers, an arbiter scores, a router chooses."""
