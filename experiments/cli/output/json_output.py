"""What each command prints with ``--json``, as types: `COMMANDS` has one for each.

docs/reference/json-output.md is made of this (`servetwin.experiments.cli.json_page`), and tests hold what commands
print to it. Numbers that are not known, or not finite, are null.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

#: No key is printed that is not here.
_closed = with_config(ConfigDict(extra="forbid"))

Number = float | None


@_closed
class Use(TypedDict):
    devices: Annotated[
        dict[str, float], "share of the time, from the first arrival to the last end, in which a device computes"
    ]
    kv_cache: Annotated[dict[str, Any], "by engine: mean and max share of the KV cache in use, and its tokens"]


@_closed
class Window(TypedDict):
    begin: Annotated[float, "seconds"]
    end: float
    requests: Annotated[int, "that came in it"]
    met: Annotated[int, "of these"]
    attainment: Number
    lost: Annotated[int, "dropped or failed in it"]
    waiting: Annotated[int, "at its end"]
    verdict: Annotated[str, "stable, backlogged or overloaded"]
    burn: Annotated[Number, "share that missed over the share that may; null without an objective"]


@_closed
class Overload(TypedDict):
    begin: Annotated[float, "when the queue was last empty, seconds"]
    peak: Annotated[float, "when it was longest"]
    waiting: Annotated[int, "then"]
    end: Annotated[Number, "when it was empty again; null if it never was"]
    recovery: Annotated[Number, "seconds from its peak to its end"]
    requests: Annotated[int, "that came in between"]
    missed: Annotated[int, "of these, that did not meet their SLO"]


@_closed
class Fault(TypedDict):
    kind: Annotated[str, "fail, crash, pause, slow, late or lost"]
    what: Annotated[str, "the device or worker"]
    at: Annotated[float, "seconds"]
    until: Annotated[Number, "null if for ever"]
    noticed: Annotated[Number, "null if it was not"]
    waiting: Annotated[int, "the most until the run had recovered"]
    recovered: Annotated[Number, "when it was over and noticed, and the queue was empty; null if never"]
    recovery: Annotated[Number, "seconds from its beginning to then"]
    requests: Annotated[int, "that came in between"]
    missed: Annotated[int, "of these, that did not meet their SLO"]


@_closed
class OnHost(TypedDict):
    host: Annotated[Any, "times the profile's that launches take: a number, or graph, pieces and kernels of a run"]
    seeds: Annotated[int, "draws of the noise of which these are means"]
    attainment: float
    request_goodput: float
    mean_ttft_ms: Number
    mean_tpot_ms: Number
    mean_e2el_ms: Number


@_closed
class Windows(TypedDict):
    seconds: Annotated[float, "of each window"]
    few: Annotated[float, "up to so many waiting count as none"]
    objective: Number
    windows: list[Window]
    overloads: list[Overload]
    budget: Annotated[Number, "how often the error budget was spent; null without an objective"]
    faults: NotRequired[Annotated[list[Fault], "where something could fail"]]


@_closed
class Gaps(TypedDict):
    mean: Annotated[float, "percentage points of the requests, |simulated - measured|"]
    largest: float


@_closed
class Validity(TypedDict):
    validated: Annotated[bool, "whether recorded runs were like it (explanation/validation.md)"]
    outside: Annotated[list[str], "what is not as in recorded runs"]
    recording: Annotated[str | None, "the nearest recorded runs, below experiments/measured"]
    gap_points: Annotated[Gaps | None, "how far off the simulation is on them"]


@_closed
class Sweep(TypedDict):
    points: NotRequired[Annotated[list[dict[str, Any]], "the rows of the table (guides/sweeps.md); simulated sweeps"]]
    validity: NotRequired[Annotated[list[Validity], "of each point; simulated sweeps"]]
    runs: NotRequired[Annotated[int, "real sweeps: how many run folders there are"]]
    files: Annotated[list[str], "the table, or the folder"]


@_closed
class SearchAnswer(TypedDict):
    workload: str
    policy: str
    deployment: str
    find: Annotated[str, "rate, slo or replicas"]
    target: Annotated[float | str, "a share of the requests, or latency limits"]
    value: Annotated[Number, "the capacity: the last value tried that holds the target"]
    low: Annotated[Number, "ends of its 95 % interval"]
    high: Number
    not_met_at: Annotated[Number, "the nearest value tried that does not hold it"]
    seeds: int
    first_seed: int
    places: Annotated[int, "values tried"]
    requests: Annotated[int, "in each run"]
    warm_up: Annotated[int, "of these, the first that are not counted"]
    settled_after: Annotated[int | None, "requests after which latencies were steady"]
    twice_as_long_agrees: Annotated[bool | None, "whether runs twice as long agree"]
    backlog: Annotated[str, "flat, growing, overloaded or unclear"]
    backlog_growth: Annotated[Number, "as a share of what arrives"]
    notes: list[str]
    versus: NotRequired[Annotated[str, "with --versus: that policy; the other keys are of its capacity and this one"]]
    more: NotRequired[Annotated[Number, "how much more this one is, seed by seed"]]
    more_low: NotRequired[Annotated[Number, "ends of its 95 % interval"]]
    more_high: NotRequired[Number]
    more_in_runs_of: NotRequired[Annotated[int, "requests of these runs"]]
    validity: Validity


@_closed
class Search(TypedDict):
    answers: list[SearchAnswer]
    files: list[str]


@_closed
class Gap(TypedDict):
    workload: Annotated[str, '"all": over all of them']
    policy: str
    runs: int
    met: Annotated[tuple[float, float] | None, "mean and largest |simulated - measured|, percentage points"]
    finished: tuple[float, float] | None
    batch: Annotated[tuple[float, float] | None, "of the mean batch size, percent"]


@_closed
class Baseline(Gap):
    predicted_by: str


@_closed
class Latency(TypedDict):
    what: Annotated[str, "statistic and metric"]
    measured: Annotated[Number, "seconds"]
    simulated: Number
    authors_error: Annotated[Number, "of the authors' own simulator, percent"]
    off: Annotated[Number, "percent"]


@_closed
class Latencies(TypedDict):
    run: str
    basis: Annotated[str | None, "what the profile stands on, if it was not measured here"]
    seconds: list[Latency]


@_closed
class Score(TypedDict):
    runs: Annotated[list[dict[str, Any]], "the rows of the table (guides/check-a-prediction.md)"]
    gaps: list[Gap]
    latencies: list[Latencies]
    decisions: Annotated[dict[str, Any], "same winners, orders and capacities, as of `compare`"]
    changed: Annotated[list[str], "profiles and policies that are not what they were when the runs were made"]
    baselines: NotRequired[list[Baseline]]
    validity: Annotated[list[Validity], "of each run that is scored"]
    files: list[str]


@_closed
class Check(TypedDict):
    policy: str
    keeps_contract: Annotated[bool, "true; otherwise the command ends with an error"]
    lines: Annotated[list[str], "what was checked, as it is printed without --json"]


@_closed
class ComparedRuns(TypedDict):
    runs: list[dict[str, Any]]
    requests: Annotated[list[int], "in the first and the second run, as all pairs"]
    attainment: Annotated[dict[str, Number], "percent: first, second, gap (second minus first)"]
    finished: dict[str, Number]
    dropped: dict[str, Number]
    goodput: Annotated[dict[str, Number], "requests per second"]
    e2el_p50: Annotated[dict[str, Number], "seconds"]
    e2el_p90: dict[str, Number]
    e2el_p99: dict[str, Number]
    same_outcome: Annotated[Number, "requests with the same outcome, percent; null if they are not the same"]
    other_requests: Annotated[str | None, "why the requests are not the same"]
    workers: Annotated[dict[str, Any], "batches of each worker"]
    iterations: Annotated[
        dict[str, Any],
        "times of iterations by worker (and shape, of requests that have one) and batch size, milliseconds",
    ]
    tokens: Annotated[dict[str, Any], "of each language model (reference/token-metrics.md)"]
    steps: NotRequired[Annotated[dict[str, Any], "of engines, by kind"]]
    cost: NotRequired[Annotated[dict[str, Any], "where devices of both have prices: first, second, gap"]]
    fleet: NotRequired[
        Annotated[dict[str, Any], "where replicas come and go in one of them: `mean_replicas`, `starts` and others"]
    ]
    faults: NotRequired[
        Annotated[dict[str, Any], "where workers may fail in one of them: `failures`, `visits_lost` and others"]
    ]
    placement: NotRequired[
        Annotated[dict[str, Any], "where models share cards in one of them: `swaps`, `seconds_swapping`"]
    ]
    quality: NotRequired[
        Annotated[
            dict[str, Any],
            "where policies may leave steps out: `attainment_at_full_steps` and `steps_run` in percent",
        ]
    ]
    basis: list[str]
    validity: Annotated[dict[str, list[Validity]], "of simulated runs: first, second"]


@_closed
class ComparedGrids(TypedDict):
    cells: Annotated[list[dict[str, Any]], "a row for each setting and policy"]
    mean_gap_points: float
    max_gap_points: float
    decisions: Annotated[dict[str, Any], "winners, ranking and capacity, and by how much repeats differ"]
    validity: Annotated[dict[str, list[Validity]], "of simulated points: first, second"]


@_closed
class Bound(TypedDict):
    workload: str
    requests: int
    bound: Annotated[int, "the most that any schedule meets"]
    bound_at_mean_times: int
    noise: bool
    method: Annotated[str, "exact or relaxed (explanation/bound.md)"]
    stages: dict[str, float]
    optimal: Annotated[bool, "whether a known schedule meets as many"]
    best: Annotated[str | None, "the known schedule that meets most"]
    best_met: int | None
    gap: int | None
    met: Annotated[dict[str, int], "by schedule"]
    share_of_bound: dict[str, Number]
    seconds: Any


@_closed
class League(TypedDict):
    seeds: list[int]
    standings: Annotated[
        list[dict[str, Any]],
        "the best first: attainment with its interval, in all and by workload; quality where steps may be left out",
    ]
    bounds: Annotated[dict[str, dict[str, float]], "by workload, as shares of the requests"]
    left_out: Annotated[dict[str, str], "policies that do not fit, and why"]


@_closed
class Fleet(TypedDict):
    fleet: Annotated[str, "its name in the plan"]
    policy: str
    router: str | None
    count: Annotated[int, "replicas"]
    dollars_per_hour: Annotated[float, "of all of them"]
    attainment: float
    attainment_low: Annotated[float, "ends of its 95 % interval"]
    attainment_high: float
    verdict: Annotated[str, "holds, may hold or does not hold (the target)"]
    front: Annotated[
        bool | None,
        "on the Pareto front: none is cheaper and meets as many, or as cheap and meets more; null unless all counts"
        " were tried (--every)",
    ]
    dollars_per_1000_requests: NotRequired[Number]
    dollars_per_million_output_tokens: NotRequired[Number]
    met_per_dollar: NotRequired[Number]
    utilisation: NotRequired[Number]
    energy_kwh: NotRequired[Number]
    fewer: NotRequired[Annotated[Number, "of may_hold: the share that the chosen one meets more, seed by seed"]]
    fewer_low: NotRequired[Annotated[Number, "ends of its 95 % interval"]]
    fewer_high: NotRequired[Number]


@_closed
class DevicePrice(TypedDict):
    fleet: str
    device: str
    profile: str
    per_hour: Annotated[float, "dollars"]
    source: str


@_closed
class Plan(TypedDict):
    target: Annotated[float, "the attainment to hold, a share"]
    seeds: int
    chosen: Annotated[Fleet | None, "the cheapest that holds; null if none does"]
    may_hold: Annotated[list[Fleet], "cheaper ones whose interval reaches the target"]
    fleets: Annotated[list[Fleet], "all that were tried, the cheapest first"]
    prices: list[DevicePrice]
    notes: Annotated[list[str], "what was not measured, and ties, among others"]
    files: list[str]
    validity: Validity


@_closed
class Plot(TypedDict):
    panels: int
    files: Annotated[list[str], "the figures, and the table of what they show"]


@_closed
class Files(TypedDict):
    files: list[str]


@_closed
class Trace(Files):
    events: int


@_closed
class Report(Files):
    bytes: int


@_closed
class DemoRun(TypedDict):
    workload: str
    policy: str
    rate: float
    counted: Annotated[str, "met or finished"]
    simulated: float
    measured: int
    gap: Annotated[float, "percentage points"]


@_closed
class Demo(TypedDict):
    runs: list[DemoRun]
    seconds: float
    figure: str


@_closed
class Profile(TypedDict):
    profile: str
    about: str
    clean: bool
    basis: Annotated[str | None, "what it stands on, if it was not measured here"]
    faults: Annotated[list[str], "why it is not clean"]
    not_measured: list[str]
    blind: Annotated[list[str], "how it predicted steps that it was not made of"]
    files: NotRequired[list[str]]


@_closed
class Converted(TypedDict):
    trace: str
    sessions: int
    turns: int
    timed: Annotated[bool, "whether it says when sessions begin"]
    tokens: Annotated[str, "what counted them"]
    left_out: Annotated[dict[str, int], "how often, by why"]
    notes: Annotated[dict[str, int], "what is to be known of turns that stay, and of how many"]


class ListedProfile(TypedDict):
    profile: str
    device: str
    modules: list[str]
    basis: Annotated[str, "measured, imported, estimated or synthetic"]
    digest: str


@_closed
class Policy(TypedDict):
    policy: str
    about: str
    parameters: Annotated[dict[str, str], "by name: type and default"]
    page: NotRequired[Annotated[list[str], "what `servetwin policies NAME` prints"]]


@_closed
class Workload(TypedDict):
    workload: str
    about: str
    policy: str
    rate: Number
    cv: Number
    slo_factor: Number
    prefill_slo: NotRequired[Number]
    decode_slo: NotRequired[Number]
    seed: int
    deployment: str
    stop_after: Number
    requests: int | None


#: Of `run`: the content of ``summary.json``, whose keys are in docs/reference/records.md, *validity* of
#: simulations, and *use* with ``--out``.
Run = dict[str, Any]

COMMANDS: dict[str, Any] = {
    "run": Run,
    "sweep": Sweep,
    "search": Search,
    "score": Score,
    "check": Check,
    "bound": Bound,
    "league": League,
    "plan": Plan,
    "compare": ComparedRuns | ComparedGrids,
    "plot": Plot,
    "figures": Files,
    "demo": Demo,
    "report": Report,
    "trace": Trace,
    "profile": Profile,
    "import": Profile,
    "convert": Converted,
    "policies": list[Policy] | Policy,
    "workloads": list[Workload],
    "profiles": list[ListedProfile] | Profile,
}
