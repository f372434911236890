# told: AttributeError
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        first = sorted(view.waiting, key=lambda task: task.worker._engine.lengths[task])
        return Step(view.admissible([(t, t.pending) for t in first])) if first else Step(decode=ALL)
