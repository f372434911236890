"""How far the simulation of a language model's runs is off."""

import numpy as np


def relative(real, simulated, what, of=np.mean):
    """Per cent by which a latency is longer in simulation."""
    return 100 * (of(getattr(simulated, what)) / of(getattr(real, what)) - 1)


def within(runs, what, of, most):
    """In how many of *runs*, (measured, simulated), a latency is off by so many per cent at *most*."""
    return sum(abs(relative(real, simulated, what, of)) <= most for real, simulated in runs)


def p99(values):
    return np.percentile(values, 99)
