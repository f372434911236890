# told: does input or output \(open\)
import json

from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def decide(self, view, now):
        with open("/proc/self/cmdline", "rb") as known:
            json.dumps(len(known.read()))
        fits = view.admissible([(t, t.pending) for t in view.waiting])
        return Step(fits) if fits else Step(decode=ALL)
