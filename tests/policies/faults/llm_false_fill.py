# told: its standing word is false
from servetwin.core import Repeat
from servetwin.core.llm import ALL, Fill, Step, TokenPolicy


class Mine(TokenPolicy):
    chunks = True

    def decide(self, view, now):
        left, prefill = 256 - view.decoding, []
        begun = [task for task in view.running if not task.decoding]
        waiting = sorted(view.waiting, key=lambda task: task.prompt)  # while the word says: in the order of the queue
        for task in (*begun, *waiting):
            if left > 0:
                prefill.append((task, min(task.pending, left)))
                left -= task.pending
        prefill = view.admissible(prefill, decode=view.decoding)
        return Step(prefill, ALL) if prefill else Step(decode=ALL, repeat=Repeat(10**9), standing=Fill(256))
