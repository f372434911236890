"""How long the page of ``servetwin explore`` takes to follow a slider: ``python tests/slider_speed.py``.

From the moved slider to drawn figures, in a real browser: 500, 1,000 and 2,000 requests, alone and beside a second
policy. On a machine that does something else besides, seconds of computing say what it would be on a quiet one. Needs
the extras ``[report]`` and ``[browser]``, and a Chromium.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from typing import Any

import browser
from servetwin.experiments.exploring.lanes import Lanes
from servetwin.experiments.exploring.pages import Pages
from servetwin.experiments.exploring.server import Server

#: Moves the slider of the rate to a place (of 1000), and notes when.
MOVE = """(place) => {
    const slider = document.querySelector("[data-key='workload.arrivals.rate'] input[type=range]");
    slider.value = String(place);
    performance.mark('moved');
    slider.dispatchEvent(new Event('input'));
}"""
TOOK = "performance.measure('took', 'moved').duration"
MOVES = 12
SETTLED = "html[data-ready=yes][data-busy=no]"


def main(workload: str, other: str) -> None:
    lanes = Lanes(2)
    began = time.perf_counter()
    server = Server(Pages(workload, [], [], lanes), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listens after {time.perf_counter() - began:.2f} s", end=", ", flush=True)
    try:
        server.pages.start()
        print(f"knows what to offer after {time.perf_counter() - began:.2f} s")
        with browser.page() as page:
            page.goto(server.invitation)
            page.wait_for_selector(SETTLED, state="attached")
            for beside in ("", other):
                page.select_option("#other", beside)
                for requests in (500, 1000, 2000):
                    page.fill("[data-key='workload.requests'] input[type=text]", str(requests))
                    page.press("[data-key='workload.requests'] input[type=text]", "Enter")
                    page.wait_for_selector(f"{SETTLED}[data-whole=yes]", state="attached")
                    took, computed = zip(*(moved(page, 300 + 20 * i) for i in range(MOVES)), strict=True)
                    what = f"{requests} requests{' of each of two policies' if beside else ''}"
                    print(
                        f"{what}: {statistics.median(took):.2f} s in the median, {max(took):.2f} s at most;"
                        f" {statistics.median(computed):.2f} s of computing"
                    )
    finally:
        server.shutdown()
        server.server_close()
        lanes.close()


def moved(page: Any, place: int) -> tuple[float, float]:
    """Seconds from the slider's move to drawn figures, and how much of that was computing: in the process that
    simulates (the slower one of two), then in the server, then in the page."""
    answers: list[Any] = []
    page.once("response", lambda response: answers.append(response))
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = _tasks(metrics), time.process_time()
    page.evaluate(MOVE, place)
    page.wait_for_selector(SETTLED, state="attached")
    took = page.evaluate(TOOK) / 1e3
    computed = _tasks(metrics) - before[0] + time.process_time() - before[1] + answers[-1].json()["seconds"]
    page.wait_for_selector(f"{SETTLED}[data-whole=yes]", state="attached")
    metrics.detach()
    return took, computed


def _tasks(metrics: Any) -> float:
    """Seconds that the page's own thread has computed."""
    found = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["opt-13b-h100-async", "sarathi"]))
