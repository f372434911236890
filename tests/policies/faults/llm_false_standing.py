# told: its standing word is false
from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        waiting = sorted(view.waiting, key=lambda task: task.prompt)  # while the word says: in the order of the queue
        fits = view.admissible([(t, t.pending) for t in waiting])
        return Step(fits) if fits else Step(decode=ALL, repeat=Repeat(10**9), standing=True)
