# told: are its budget
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    tokens_a_step = 128

    def decide(self, view, now):
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        return Step(fits) if fits else Step(decode=ALL)
