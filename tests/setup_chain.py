"""Queues whose servers are set up when work comes and turned off when there is none, as a Markov chain.

Source: Gandhi, Doroudi, Harchol-Balter and Scheller-Wolf, "Exact analysis of the M/M/k/setup class of Markov chains"
(SIGMETRICS 2013), the ON/OFF policy.
"""

from __future__ import annotations

import numpy as np


def chain(servers: int, rate: float, setup: float, most: int = 400) -> tuple[float, float]:
    """The mean time in an M/M/k queue, of mean service 1 s, whose servers are turned off as soon as nothing waits and
    set up, one for each request that waits, when something does, exponentially long; and how many are held.

    By the Markov chain of (servers that are on, requests), solved numerically: with i on and n > i requests,
    min(n, servers) - i are in setup. *most* requests are there at the most."""
    alpha = 1 / setup
    states = [(i, n) for n in range(most + 1) for i in range(min(n, servers) + 1)]
    place = {state: k for k, state in enumerate(states)}
    rates = np.zeros((len(states), len(states)))
    for (i, n), k in place.items():
        if n < most:
            rates[k, place[i, n + 1]] += rate
        if i:
            rates[k, place[min(i, n - 1), n - 1]] += i
        starting = min(n, servers) - i
        if starting:
            rates[k, place[i + 1, n]] += starting * alpha
    np.fill_diagonal(rates, -rates.sum(axis=1))
    equations = np.vstack([rates.T[:-1], np.ones(len(states))])
    shares = np.linalg.solve(equations, np.append(np.zeros(len(states) - 1), 1.0))
    present = sum(p * n for p, (_, n) in zip(shares, states, strict=True))
    held = sum(p * min(n, servers) for p, (_, n) in zip(shares, states, strict=True))
    return present / rate, held
