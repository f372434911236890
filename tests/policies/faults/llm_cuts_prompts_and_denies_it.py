# told: says that it cuts no prompts
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        pieces = [(t, min(t.pending, 64)) for t in [*view.running, *view.waiting] if not t.decoding]
        return Step(view.admissible(pieces, decode=view.decoding), ALL)
