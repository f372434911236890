"""The experiment file: what is served, how, on what, and how time passes.

An `Experiment` is complete: nothing is left to be looked up elsewhere except profiles, policies and trace
files, which it names. `servetwin.experiments.spec.loading.load` makes one from a YAML file that may extend another.
Units are seconds and requests throughout. Unknown keys and values of the wrong type are errors.
"""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from servetwin.core import BadInput
from servetwin.profiles import Kind
from servetwin.profiles.tables.field_types import Late

from .keys.autoscaler import AutoscalerSpec
from .keys.faults import FaultsSpec
from .keys.field_types import Count, NotNegative, Positive, Strict, Weight
from .keys.host_factors import Host
from .keys.memory import CardSpec
from .keys.prices import Price
from .keys.routing import HandoverSpec, RouterSpec, Routing
from .keys.schedule import ByClass, Schedule
from .llm import EngineSpec, Lengths, TokenSLOSpec, drop_options
from .sessions import ClosedLoop, SessionsSpec
from .shapes import ShapeDraw, StepActionsSpec

# -- what arrives ---------------------------------------------------------------------------------------


def _not_constant(cv: Any) -> Any:
    """Without variation gaps are equal, and that is a process of its own."""
    if cv == 0 and not isinstance(cv, bool):
        raise PydanticCustomError("constant", "greater than or equal to 0.001; for equal gaps, process: constant")
    return cv


class Gamma(Strict):
    """Gaps from a gamma distribution: *rate* requests per second, *cv* the coefficient of variation of the gaps."""

    process: Literal["gamma"]
    rate: Positive
    cv: Annotated[float, BeforeValidator(_not_constant), Field(ge=1e-3, le=1e3, allow_inf_nan=False)]


class Poisson(Strict):
    """Exponential gaps; *rate* requests per second on average."""

    process: Literal["poisson"]
    rate: Positive


class Constant(Strict):
    """Equal gaps of 1 / *rate* seconds."""

    process: Literal["constant"]
    rate: Positive


class Bursty(Strict):
    """A Poisson process that switches between calm and burst (a Markov-modulated Poisson process with two states).

    *rate* is the mean over both, *burst* how many times faster requests come in a burst, *share* the part of the
    time that is burst, *cycle* the mean length in seconds of a calm period and a burst together.
    """

    process: Literal["bursty"]
    rate: Positive
    burst: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    cycle: Positive = 60.0


class Recorded(Strict):
    """The requests recorded in *file* (see `servetwin.experiments.workload.traces`).

    *format* is told by the file's first line if left at "auto". Of a trace with images of several sizes one *size*
    must be picked (512x512), unless the workload's shapes are the trace's. Only what came from *start* to before
    *end* is taken, in seconds since the first request by the trace's own clock. With *windows* that is cut into so
    many windows of equally many requests, of which the experiment's seed draws one.
    """

    file: str
    format: Literal["auto", "plain", "azure", "burstgpt", "mooncake", "vllm-bench", "gentd26", "requests"] = "auto"
    size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = None
    start: NotNegative | None = None
    end: Positive | None = None
    windows: Count | None = None


class Trace(Recorded):
    """The arrivals of a trace, from its first request that is replayed, stretched to *rate* if it is given."""

    process: Literal["trace"]
    rate: Positive | None = None


DrawnArrivals = Annotated[Gamma | Poisson | Constant | Bursty | Schedule, Discriminator("process")]
Arrivals = Annotated[
    ClosedLoop | Gamma | Poisson | Constant | Bursty | Schedule | ByClass | Trace, Discriminator("process")
]
OWN_RATE = (ClosedLoop, Schedule, ByClass, Trace)  #: they have a rate of their own, or none


class UniformSteps(Strict):
    """Any whole number from *low* to *high*, both included, equally likely."""

    draw: Literal["uniform"]
    low: Count
    high: Count


class ConstantSteps(Strict):
    """The same for every request."""

    draw: Literal["constant"]
    steps: Count


class ChoiceSteps(Strict):
    """One of *values*, with probabilities proportional to *weights* (equal if left out)."""

    draw: Literal["choice"]
    values: Annotated[list[Count], Field(min_length=1)]
    weights: list[NotNegative] | None = None


class TraceSteps(Strict):
    """What the trace file says."""

    draw: Literal["trace"]


Steps = Annotated[UniformSteps | ConstantSteps | ChoiceSteps | TraceSteps, Discriminator("draw")]


# -- what is promised -----------------------------------------------------------------------------------


class RelativeSLO(Strict):
    """*factor* times what the request takes alone: *constant* plus its modules' latencies in the *base* table."""

    factor: Positive
    base: Kind = "slo"
    constant: NotNegative = 0.0


class FixedSLO(Strict):
    """*seconds* for every request."""

    seconds: Positive


def _kind_of_slo(value: Any) -> str:
    if isinstance(value, FixedSLO):
        return "fixed"
    if not isinstance(value, dict):
        return "tokens" if isinstance(value, TokenSLOSpec) else "relative"
    if "seconds" in value:
        return "fixed"
    return "tokens" if value.keys() & {"prefill", "decode", "limits"} else "relative"


SLOSpec = Annotated[
    Annotated[RelativeSLO, Tag("relative")]
    | Annotated[FixedSLO, Tag("fixed")]
    | Annotated[TokenSLOSpec, Tag("tokens")],
    Discriminator(_kind_of_slo),
]


# -- what arrives, all together -------------------------------------------------------------------------


class RequestClass(Strict):
    """A class of requests: what it does not say is as in the rest of the workload, and in the experiment's SLO.

    Requests are of the classes in proportion to their *share*; if no class has one, the trace's column ``class`` says
    which each is of. *steps* and *lengths* replace those of the workload, module by module; what *slo* says is laid
    over the experiment's, key by key; *shape* is as in the workload. *priority* (lower is sooner, as in vLLM),
    *tenant* and *weight* (the share of service that the tenant is entitled to, relative to others') are shown to
    policies and routers. *arrivals*: where those of the workload are "by_class", when requests of this class come; no
    class has a share then. *enters*: at which of the modules that a pipeline begins with they begin (at all, if not
    said): one model of several, say.
    """

    share: Positive | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    tenant: Annotated[str, Field(max_length=64)] = ""
    weight: Weight = 1.0
    slo: SLOSpec | None = None
    steps: dict[str, Steps] = Field(default_factory=dict)
    lengths: dict[str, Annotated[Lengths, Late()]] = Field(default_factory=dict)
    shape: ShapeDraw | None = None
    arrivals: DrawnArrivals | None = None
    enters: Annotated[list[str], Field(min_length=1)] | None = None


class Workload(Strict):
    """*requests* requests with arrivals and, per loop module, steps.

    With *draws* "published" the random numbers are those of the NeuStream artifact (numpy's legacy generator,
    seeded with 0 for each list): the same requests in every run, whatever the experiment's seed. "published_llm" is
    the same with the seeds of its LLM experiments, which depend on the cv, "published_agents" with those of its
    multi-agent experiments. With "seeded" they come from the
    experiment's seed. *requests* may be left out (null) for a trace: all of it; and for a load that ends at a time:
    all that come by then. LLM modules have *lengths* in place
    of *steps*. *trace* is where steps and lengths come from that are those of a trace, if the arrivals are drawn.
    *classes* tell requests apart that have steps, lengths, an SLO, a priority, a tenant or a weight of their own.
    With *sessions* requests are their turns, and *arrivals* say when sessions begin.

    *shape* says of which size images are (or videos), and what else batches go by: "constant" for all, a "choice"
    with weights, or that of the "trace". Left out, all are as the profile was measured.
    """

    requests: Count | None
    draws: Literal["published", "published_llm", "published_agents", "seeded"] = "seeded"
    arrivals: Arrivals
    steps: dict[str, Steps] = Field(default_factory=dict)
    lengths: dict[str, Annotated[Lengths, Late()]] = Field(default_factory=dict)
    trace: Annotated[Recorded, Late()] | None = None
    classes: dict[str, Annotated[RequestClass, Late()]] = Field(default_factory=dict)
    sessions: Annotated[SessionsSpec, Late()] | None = None
    shape: ShapeDraw | None = None

    @property
    def in_turns(self) -> bool:
        """Whether requests are sent when others have ended: there are sessions, or a closed loop."""
        return self.sessions is not None or isinstance(self.arrivals, ClosedLoop)

    @property
    def shaped(self) -> bool:
        """Whether requests have shapes of their own."""
        return self.shape is not None or any(own.shape is not None for own in self.classes.values())

    @property
    def recorded(self) -> Recorded | None:
        """The trace that arrivals, steps or lengths are taken from."""
        return self.arrivals if isinstance(self.arrivals, Trace) else self.trace

    @property
    def says_more(self) -> bool:
        """Whether requests say more of themselves than their work, whatever a trace says: classes, predictions,
        shapes."""
        return (
            bool(self.classes)
            or self.shape is not None
            or any(lengths.predict is not None for lengths in self.lengths.values())
        )


# -- how an SLO is shared out ---------------------------------------------------------------------------


class BudgetSpec(Strict):
    """How the SLO of a request is divided among the stages of its path.

    *split* "none": each stage works against the deadline of the request. "equal": each gets what it takes alone and
    an equal share of the slack; "proportional": a share in proportion to what it takes alone; "fixed": so many
    *seconds* (by module, the first of the stage; language models need none, their tokens have deadlines). With
    *carry* a stage's unused slack goes on with the request. *forward*: which requests go on to the next stage:
    "always" all, only those within their stage's "budget", or only those for which enough time is "left" if they were
    served alone from there on. The others are dropped.
    """

    split: Literal["none", "equal", "proportional", "fixed"] = "none"
    seconds: dict[str, NotNegative] = Field(default_factory=dict)
    carry: bool = True
    forward: Literal["always", "budget", "left"] = "always"

    @property
    def used(self) -> bool:
        """Whether it changes anything: stages have deadlines of their own, or not all requests go on."""
        return self.split != "none" or self.forward != "always"


# -- what serves ----------------------------------------------------------------------------------------


class ModuleSpec(Strict):
    """A compute stage; a *loop* module runs many iterations per request; *actions* let a policy leave some out.

    Where several edges come together a request waits for "all" of them, or goes on with "any". A module of *kind*
    "llm" is a language model: a stage of its own, whose worker is an engine that prefills prompts and decodes tokens.
    """

    loop: bool = False
    join: Literal["all", "any"] = "all"
    kind: Literal["llm"] | None = None
    actions: Annotated[StepActionsSpec, Late()] | None = None

    @property
    def llm(self) -> bool:
        return self.kind == "llm"


class BranchSpec(Strict):
    """An edge that is taken with a *probability* instead of the other edges, by one request *most* times at most."""

    source: Annotated[str, Field(alias="from")]
    to: str
    probability: Annotated[float, Field(gt=0, le=1)]
    most: Count | None = None


class PipelineSpec(Strict):
    """Modules by name, in order; *edges* are (from, to) pairs where the pipeline is not a plain chain.

    *branches* skip a stage, choose one of several, or lead back to try again. Which requests take them is drawn
    with the workload.
    """

    modules: Annotated[dict[str, ModuleSpec], Field(min_length=1)]
    edges: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None
    branches: list[BranchSpec] = Field(default_factory=list)

    @property
    def llms(self) -> list[str]:
        """The modules that are language models. The worker of such a module is an engine, and serves no other."""
        return [name for name, module in self.modules.items() if module.llm]


class PolicySpec(Strict):
    """A policy by name, entry point, ``package.module:Class`` or file, and its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class _Calls(Strict):
    source: Annotated[str, Field(min_length=1)]


class ConstantCalls(_Calls):
    """Every call of a tool takes *mean* seconds. *source* says where the number comes from."""

    time: Literal["constant"]
    mean: NotNegative


class ExponentialCalls(_Calls):
    """The calls of a tool take *mean* seconds on average, exponentially distributed."""

    time: Literal["exponential"]
    mean: Positive


class LognormalCalls(_Calls):
    """The calls of a tool take *mean* seconds on average, with a coefficient of variation *cv*."""

    time: Literal["lognormal"]
    mean: Positive
    cv: Positive


class ListedCalls(_Calls):
    """The call of request 0, 1, ... takes so many seconds; after the last one it begins again."""

    time: Literal["list"]
    values: Annotated[list[NotNegative], Field(min_length=1)]


Calls = Annotated[ConstantCalls | ExponentialCalls | LognormalCalls | ListedCalls, Discriminator("time")]


class ScriptsSpec(Strict):
    """What a tool runs for real: the Python files in *folder*, request by request, each confined and for so long.

    *strict*: nothing is run where the system lets neither network nor writes be cut off.
    """

    folder: str
    strict: bool = True
    seconds: Positive = 10.0
    memory_mib: Count = 2048
    file_mib: Count = 64


class WorkerSpec(Strict):
    """Serves *modules* on *device* with batches of up to *limit*.

    *intake* says when arrived requests are admitted: "before" each decision, or "after" each launch, as
    NeuStream's workers do. *policy* replaces the experiment's policy for this worker.

    A tool, say a code executor, is served by a pool of *threads* instead: *calls* says how long a call takes in
    simulation, *scripts* what a real one runs. It needs no device and no limit, and is served first come, first
    served unless it has a policy of its own.

    Of an LLM module's worker *limit* is the most requests that run at once, and *engine* has its other limits. With
    the *role* "prefill" it computes prompts and hands them over to workers of the same module with the role "decode";
    without one it does both. With *gpus* its device is a group of so many (docs/guides/groups-of-devices.md): its
    policy says on which of them each batch runs, and *limit* holds for each batch.
    """

    modules: Annotated[list[str], Field(min_length=1)]
    device: str | None = None
    limit: Count | None = None
    intake: Literal["before", "after"] = "before"
    name: str | None = None
    policy: PolicySpec | None = None
    threads: Count | None = None
    calls: Calls | None = None
    engine: Annotated[EngineSpec, Late()] | None = None
    scripts: Annotated[ScriptsSpec, Late()] | None = None
    role: Literal["prefill", "decode"] | None = None
    gpus: Annotated[int, Field(ge=2, le=1024)] | None = None


class Deployment(Strict):
    """*devices* maps names to profiles; *estimates* is the kind of table that policies see.

    *name* is which of a file's named ``deployments`` this is; with ", changed" if something was set besides.

    Several workers may serve the same modules: *router* says how requests are shared out among them (a name, a file,
    or a mapping; docs/guides/routing.md), *routers* says so for single modules. *replicas* repeats the whole
    deployment, each time on devices of its own. *handover*: how prompts get from workers that prefill to workers that
    decode, where there are such roles. *prices*: what each device (or card) costs, and draws. *autoscaler*: how
    many of the *replicas*, which are then the most, serve when. *faults*: which devices and workers fail, and what is
    done about it. *cards*: which of the devices are models that share the memory of one card, and take turns on it.
    """

    name: str | None = None
    devices: dict[str, str] = Field(default_factory=dict)
    workers: Annotated[list[WorkerSpec], Field(min_length=1)]
    estimates: Kind = "scheduler"
    replicas: Count = 1
    router: Routing = "least_loaded"
    routers: dict[str, Routing] = Field(default_factory=dict)
    handover: Annotated[HandoverSpec, Late()] | None = None
    prices: dict[str, Annotated[Price, Late()]] | None = None
    autoscaler: Annotated[AutoscalerSpec, Late()] | None = None
    faults: Annotated[FaultsSpec, Late()] | None = None
    cards: dict[str, Annotated[CardSpec, Late()]] | None = None

    @property
    def routings(self) -> dict[tuple[str, ...], RouterSpec]:
        """The routers that it names, by where they stand in it."""
        said: dict[tuple[str, ...], Routing] = {("router",): self.router}
        said |= {("routers", module): own for module, own in self.routers.items()}
        if self.handover is not None:
            said["handover", "router"] = self.handover.router
        return {path: RouterSpec(name=r) if isinstance(r, str) else r for path, r in said.items()}

    @property
    def counted(self) -> dict[str, str]:
        """The devices that workers compute on, each with what it counts as: the card that it is a model of, or
        itself. Others (those of a file that this one extends, say) count nowhere."""
        of_card = {device: card for card, said in (self.cards or {}).items() for device in said.devices}
        own = {worker.device for worker in self.workers}
        return {device: of_card.get(device, device) for device in self.devices if device in own}

    @property
    def devices_used(self) -> dict[str, str]:
        """Those of *devices* that count: workers compute on them, engines make drafts by them, or cards hold them."""
        engines = [worker.engine for worker in self.workers if worker.engine is not None]
        drafts = [e.speculative_config.draft for e in engines if e.speculative_config is not None]
        used = {*self.counted, *(draft.device for draft in drafts if draft is not None)}
        used.update(*(card.devices for card in (self.cards or {}).values()))
        return {device: profile for device, profile in self.devices.items() if device in used}

    @property
    def repeated(self) -> bool:
        """Whether workers stand for several: `servetwin.experiments.assembly.replicas` spells them out."""
        return self.replicas > 1 or len({w.name or "+".join(w.modules) for w in self.workers}) < len(self.workers)


class System(Strict):
    """Properties of the system around the policy.

    *stop_after* ends the run that many seconds after the last request was sent, and what is in flight then
    fails; null lets everything end. The client sends request *i*, due at *t*, at ``t * (1 + client_stretch) + i *
    client_delay``: a measured client falls behind by a little with each request.
    """

    stop_after: NotNegative | None = None
    client_delay: NotNegative = 0.0
    client_stretch: NotNegative = 0.0


class Records(Strict):
    """What a run's folder holds besides. *tokens*: in ``requests.jsonl``, when each token of an LLM came out."""

    tokens: bool = False


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise PydanticCustomError("moment", "a date and time, 2024-04-28 17:41:55") from None


class Time(Strict):
    """What simulated time includes. Each term can be switched off to see its effect.

    *table*: the periods "measured" in running systems, or those that "scheduler"s planned with; for LLM modules also
    "corrected" (see `servetwin.profiles.TOKEN_KINDS`). *contention*: workers of one device slow each other down.
    *costs*: joins, leaves, transfers and changes of devices cost the worker time. *whole*: batches of whole requests
    take what was measured of such batches, rather than the sum of their iterations. *transport*: requests take time
    between workers. *noise*: durations are drawn from measured residuals, and the host has its measured slow periods.
    *session*: date and time of a measured run, for the speed of its host on that day. *hold*: beyond the end of a
    table its last value is used, instead of an error. *unmeasured*: workers on one device whose slowdown of each
    other the profile does not contain are "refused", or the device is "shared" in time among those that are busy.
    *host*: launching the steps of engines of language models takes so many times what the profile says.
    """

    table: Literal["measured", "scheduler", "corrected"] = "measured"
    contention: bool = True
    costs: bool = True
    whole: bool = True
    transport: bool = True
    noise: bool = True
    session: Annotated[str, AfterValidator(_moment)] | None = None
    hold: bool = False
    unmeasured: Literal["refused", "shared"] = "refused"
    host: Host | None = None


class Experiment(Strict):
    """A complete experiment."""

    name: str
    about: str = ""
    pipeline: PipelineSpec
    workload: Workload
    slo: SLOSpec
    budget: BudgetSpec = BudgetSpec.model_construct()
    policy: PolicySpec
    deployment: Deployment
    system: System = System.model_construct()
    time: Time = Time.model_construct()
    records: Records = Records.model_construct()
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def policies(self) -> list[PolicySpec]:
        """The policy of each worker: its own or the experiment's; pools of threads know no batching policy."""
        usual, pooled = self.policy, PolicySpec(name="fcfs")
        return [w.policy or (usual if w.threads is None else pooled) for w in self.deployment.workers]

    def as_dict(self, *, whole: bool = False) -> dict[str, Any]:
        """The content of a file that says the same in full; with *whole* also the keys that came later than files
        that say nothing of them."""
        content = self.model_dump(mode="json", by_alias=True)
        load, plan = content["workload"], content["deployment"]
        for name, own in self.workload.classes.items():
            if own.slo is not None:  # what it does not say is as in the experiment's
                load["classes"][name]["slo"] = own.slo.model_dump(mode="json", exclude_unset=True)
        if whole:
            return content
        for said in (plan, *plan["workers"], *content["pipeline"]["modules"].values()):
            for key in ("handover", "role", "prices", "actions", "autoscaler", "faults", "gpus", "cards"):
                if key in said and said[key] is None:
                    del said[key]
        if self.time.host is None:
            del content["time"]["host"]
        for worker in plan["workers"]:
            drop_options(worker["engine"])
        for key in [key for key in ("trace", "sessions") if load[key] is None]:
            del load[key]
        if not self.workload.classes:
            del load["classes"]
        for said in (load, *load.get("classes", {}).values()):
            for key in ("shape", "arrivals", "enters"):
                if key in said and said[key] is None:
                    del said[key]
        for lengths in (load["lengths"], *(own["lengths"] for own in load.get("classes", {}).values())):
            for said in lengths.values():
                if said["predict"] is None:
                    del said["predict"]
        return content

    def slo_of(self, class_name: str) -> RelativeSLO | FixedSLO | TokenSLOSpec:
        """What is promised to requests of the class of that name."""
        own = self.workload.classes[class_name].slo if class_name in self.workload.classes else None
        if own is None or type(own) is not type(self.slo):
            return self.slo if own is None else own
        return self.slo.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    def digest(self) -> str:
        """A hash of all that can change a result."""
        content = self.as_dict()
        del content["about"], content["records"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Misfit(BadInput):
    """Parts of an experiment that do not fit together; *path* is the key to look at."""

    def __init__(self, path: tuple[str | int, ...], what: str, right: str | None = None) -> None:
        self.path = path
        super().__init__(what, where=".".join(map(str, path)), right=right)
