# told: a Repeat of its is false
from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        if fits:
            return Step(fits)
        late = [task for task in view.running if task.decoding and task.generated % 3]
        return Step(decode=late or ALL, repeat=Repeat(100, longest=60.0))
