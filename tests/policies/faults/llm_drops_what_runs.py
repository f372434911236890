# told: which has begun and has no deadline
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        over = [task for task in view.running if task.generated > 5]
        return (
            Step(decode=ALL, drop=over)
            if over
            else Step(view.admissible([(t, t.pending) for t in view.waiting]), ALL)
        )
