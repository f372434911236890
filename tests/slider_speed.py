"""How long the page of ``servetwin explore`` takes to follow a slider: ``python tests/slider_speed.py [WORKLOAD]``.

From the moved slider to drawn figures, in a real browser: 500, 1,000 and 2,000 requests, alone and beside a second
policy. Needs the extras ``[report]`` and ``[browser]``, and a Chromium.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time

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


def main(workload: str, other: str) -> None:
    began = time.perf_counter()
    lanes = Lanes(2)
    server = Server(Pages(workload, [], [], lanes), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listens after {time.perf_counter() - began:.2f} s", end=", ", flush=True)
    try:
        server.pages.start()
        print(f"knows what to offer after {time.perf_counter() - began:.2f} s")
        with browser.page() as page:
            page.goto(server.invitation)
            settled = "html[data-ready=yes][data-busy=no]"
            page.wait_for_selector(settled, state="attached")
            for beside in ("", other):
                page.select_option("#other", beside)
                for requests in (500, 1000, 2000):
                    page.fill("[data-key='workload.requests'] input[type=text]", str(requests))
                    page.press("[data-key='workload.requests'] input[type=text]", "Enter")
                    page.wait_for_selector(settled, state="attached")
                    took = []
                    for i in range(MOVES):
                        page.evaluate(MOVE, 300 + 20 * i)
                        page.wait_for_selector(settled, state="attached")
                        took.append(page.evaluate(TOOK) / 1e3)
                        page.wait_for_selector(f"{settled}[data-whole=yes]", state="attached")
                    what = f"{requests} requests{' of each of two policies' if beside else ''}"
                    print(f"{what}: {statistics.median(took):.2f} s in the median, {max(took):.2f} s at most")
    finally:
        server.shutdown()
        lanes.close()


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["opt-13b-h100-async", "sarathi"]))
