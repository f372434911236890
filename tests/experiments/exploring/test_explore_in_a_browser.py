"""The page of ``servetwin explore`` in a real browser: it follows what is changed, and obeys nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import pytest
from servetwin.experiments.exploring.lanes import Lanes
from servetwin.experiments.exploring.pages import Pages
from servetwin.experiments.exploring.server import TOKEN, Server
from servetwin.experiments.exploring.simulation import simulate

pytest.importorskip("plotly")

RATE = "[data-key='workload.arrivals.rate']"
#: What the lines of the first figure are.
LINES = "document.querySelector('.canvas').data.map((trace) => [trace.name, trace.y])"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched() as found:
        yield found


@pytest.fixture(scope="module")
def server(lanes: Lanes) -> Iterator[Server]:
    made = Server(Pages("opt-13b-h100-async", [("requests", 80), ("rate", 30.0)], [], lanes), 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@contextmanager
def opened(context: Any, address: str) -> Iterator[Any]:
    """A tab that shows the page; `heard` says what its console says and what it asks of others."""
    page = context.new_page()
    try:
        page.heard = []
        page.on("console", lambda m: page.heard.append(m.text))
        page.on("pageerror", lambda e: page.heard.append(str(e)))
        own = (address.partition("#")[0], "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else page.heard.append(r.url))
        page.goto(address)
        settle(page)
        yield page
    finally:
        page.close()


@pytest.fixture(scope="module")
def first(chromium: Any, server: Server) -> Iterator[Any]:
    """A tab of the page, opened once."""
    context = chromium.new_context(viewport={"width": browser.DESKTOP[0], "height": browser.DESKTOP[1]})
    with opened(context, server.invitation) as page:
        yield page
    context.close()


@pytest.fixture
def page(first: Any) -> Any:
    """That tab, as it was at first."""
    if first.is_enabled("#reset"):
        first.click("#reset")
        settle(first)
    first.heard.clear()
    return first


def settle(page: Any) -> None:
    """Wait until all that was changed is simulated and drawn."""
    page.wait_for_selector("html[data-ready=yes][data-busy=no][data-whole=yes]", state="attached")


def attainment(page: Any) -> list[str]:
    """That of each run, as the page says it."""
    found: list[str] = page.locator("#results .facts div").first.locator("dd").all_text_contents()
    return found


def simulated(changed: dict[str, Any]) -> str:
    share = simulate("opt-13b-h100-async", {"workload.requests": 80, **changed}, "x").run.summary["attainment"]
    return f"{100 * share:.1f} %"


def all_is_well(page: Any) -> bool:
    """Whether nothing is clipped or lies over something else, and nothing was complained of."""
    page.evaluate("document.querySelectorAll('main details').forEach((d) => { d.open = true; })")
    return [*page.evaluate(browser.CLIPPED), *page.evaluate(browser.OVERLAPPING), *page.heard] == []


def test_it_opens_and_nothing_is_clipped(page: Any):
    assert page.evaluate("location.hash") == "#of=opt-13b-h100-async"  # the token is no part of it
    assert len(page.query_selector_all(".canvas .main-svg")) >= 9
    assert all_is_well(page)


def test_on_a_phone_it_opens_and_nothing_is_clipped(chromium, server: Server):
    context = chromium.new_context(viewport={"width": browser.PHONE[0], "height": browser.PHONE[1]})
    with opened(context, server.invitation) as page:
        page.select_option("#other", "sarathi")
        settle(page)
        assert "%" in page.inner_text("#strip")  # in view, wherever the page is
        assert all_is_well(page)
    context.close()


def test_a_slider_moves_the_curves(page: Any):
    assert attainment(page) == [simulated({"workload.arrivals.rate": 30.0})]
    before = page.evaluate(LINES)
    page.locator(f"{RATE} input[type=range]").press("Home")
    settle(page)
    assert page.evaluate(LINES) != before
    slow = page.locator(f"{RATE} input[type=text]").input_value()
    assert float(slow) < 30
    assert attainment(page) == [simulated({"workload.arrivals.rate": float(slow)})]
    assert f"servetwin run opt-13b-h100-async --rate {slow} --requests 80" in page.inner_text("#commands")
    page.click("#reset")
    settle(page)
    assert page.evaluate(LINES) == before
    assert page.heard == []


def test_a_slider_that_is_dragged_ends_where_it_was_left(page: Any):
    """Many changes in a row: the last one counts, whatever becomes of those before it."""
    slider = page.locator(f"{RATE} input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=25)
    page.mouse.up()
    settle(page)
    rate = float(page.locator(f"{RATE} input[type=text]").input_value())
    assert rate > 100
    assert attainment(page) == [simulated({"workload.arrivals.rate": rate})]
    assert page.heard == []


def test_two_policies_under_the_same_requests_and_a_link_to_that(page: Any, server: Server):
    page.select_option("#policy", "vllm-v1")
    page.select_option("#other", "sarathi")
    page.locator(".params summary").last.click()
    chunk = page.locator(".params input[type=text]").last
    chunk.fill("300")
    chunk.press("Enter")
    settle(page)
    rate = {"workload.arrivals.rate": 30.0}
    expected = [
        simulated({**rate, "policy.name": "vllm-v1"}),
        simulated({**rate, "policy.name": "sarathi", "policy.params.chunk": 300}),
    ]
    assert attainment(page) == expected
    assert [name for name, _ in page.evaluate(LINES)] == ["requests that arrive", "vllm-v1", "sarathi"]
    assert "--policy sarathi --rate 30 --requests 80 --set policy.params.chunk=300" in page.inner_text("#commands")
    assert all_is_well(page)
    link = page.evaluate("location.href")
    assert server.token not in link
    with opened(page.context, link) as again:
        assert attainment(again) == expected
        assert again.input_value("#other") == "sarathi"
        assert again.heard == []


def test_two_tabs_do_not_disturb_each_other(page: Any, server: Server):
    with opened(page.context, server.address) as other:  # the browser knows the token
        for place, opposite in (("Home", "End"), ("End", "Home"), ("Home", "End")):
            page.locator(f"{RATE} input[type=range]").press(place)
            other.locator(f"{RATE} input[type=range]").press(opposite)
        rates = []
        for tab in (page, other):
            settle(tab)
            rates.append(float(tab.locator(f"{RATE} input[type=text]").input_value()))
            assert attainment(tab) == [simulated({"workload.arrivals.rate": rates[-1]})]
        assert rates[0] < 30 < rates[1]
        assert page.heard == other.heard == []


def test_what_is_wrong_is_said_in_a_line_and_can_be_mended(page: Any):
    before = attainment(page)
    box = page.locator(f"{RATE} input[type=text]")
    for text, said in (("abc", "'abc'"), ("-1", "greater than 0"), ("", "''")):
        box.fill(text)
        box.press("Enter")
        settle(page)
        trouble = page.inner_text("#trouble")
        assert said in trouble
        assert "\n" not in trouble
        assert attainment(page) == before
    box.fill("30")
    box.press("Enter")
    settle(page)
    assert not page.is_visible("#trouble")
    for link, said in (
        ("#of=opt-13b-h100-async&policy.name=%22%2Ftmp%2Fmine.py%22", "the page offers no policy '/tmp/mine.py'"),
        ("#of=another", "the link is about another, and this page about opt-13b-h100-async"),
        ("#of=opt-13b-h100-async&seed=", "the link is not whole: seed is"),
    ):
        page.evaluate("(link) => { location.hash = link; }", link)
        page.wait_for_selector(f"#trouble:text({said!r})")
        assert attainment(page) == before
    page.evaluate("location.hash = '#of=opt-13b-h100-async'")
    settle(page)
    assert page.heard == []


def test_without_the_token_there_is_nothing_to_see(chromium, server: Server):
    with browser.page(browser=chromium) as page:
        page.goto(server.address)
        page.wait_for_selector("html[data-ready=failed]", state="attached")
        assert page.inner_text("#trouble") == "open the address that servetwin explore printed: it has a token"


#: What a page of another origin may try, with the token in hand even; it gives what came of each.
ATTEMPTS = """async (to) => {
    const tried = {};
    const body = JSON.stringify({tab: 'evil', number: 1, state: {}});
    const ways = {
        simple: {method: 'POST', mode: 'no-cors', headers: {'Content-Type': 'text/plain'}, body},
        json: {method: 'POST', headers: {'Content-Type': 'application/json', [to.name]: to.token}, body},
        read: {},
    };
    for (const [way, options] of Object.entries(ways))
        tried[way] = await fetch(to.address + (way === 'read' ? '' : 'api/run'), options)
            .then((answer) => `${answer.type} ${answer.status}`, () => 'refused');
    tried.script = await new Promise((done) => {
        const script = document.createElement('script');
        script.src = to.address + 'explore.js';
        script.onload = () => done('loaded');
        script.onerror = () => done('refused');
        document.head.append(script);
    });
    const frame = document.createElement('iframe');
    frame.src = to.address;
    document.body.append(frame);
    await new Promise((done) => { frame.onload = done; setTimeout(done, 2000); });
    tried.frames = frame.contentDocument === null ? 'refused' : frame.contentDocument.body.textContent;
    return tried;
}"""


def test_no_other_origin_can_drive_it(chromium, first: Any, server: Server, tmp_path: Path, monkeypatch):
    asked: list[Any] = []
    answer = server.pages.answer
    monkeypatch.setattr(server.pages, "answer", lambda *what: asked.append(what) or answer(*what))
    (tmp_path / "index.html").write_text("<!doctype html><title>elsewhere</title><body></body>")
    with browser.served(tmp_path, {}) as elsewhere, browser.page(browser=chromium) as page:
        page.goto(f"{elsewhere}/index.html")
        tried = page.evaluate(ATTEMPTS, {"address": server.address, "token": server.token, "name": TOKEN})
        assert tried == {
            "simple": "refused",
            "json": "refused",
            "read": "refused",
            "script": "refused",
            "frames": "refused",
        }
    assert asked == []
    first.locator(f"{RATE} input[type=range]").press("Home")
    settle(first)
    assert asked  # else the above would prove nothing


def test_two_thousand_requests_take_less_than_a_second_of_computing():
    from servetwin.experiments.exploring.pages import shown

    chosen = {"workload.requests": 2000, "workload.arrivals.rate": 25.0, "policy.name": "sarathi"}
    simulate("opt-13b-h100-async", chosen, "warm")
    began = time.process_time()
    shown([simulate("opt-13b-h100-async", chosen, "sarathi")], 0.0)
    assert time.process_time() - began < 1.0
