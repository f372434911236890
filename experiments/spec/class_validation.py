"""Whether the classes of a workload fit together, the predictions of its lengths, and the shapes of its requests."""

from __future__ import annotations

import re

from ..registry.catalog import suggest
from .experiment import Experiment, Misfit, RequestClass, TraceSteps
from .llm import BucketPrediction, Lengths, TokenSLOSpec, TracePrefix, TraceTokens
from .shapes import ChoiceShape, ShapeDraw, TraceShape, shapes_in

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check(experiment: Experiment) -> None:
    """Raise `Misfit` if they do not."""
    load = experiment.workload
    for module, lengths in load.lengths.items():
        _check_prediction(("workload", "lengths", module, "predict"), lengths)
    if not load.classes:
        return
    if load.draws != "seeded":
        what = "NeuStream's artifact has no classes of requests that could be repeated"
        raise Misfit(("workload", "draws"), what, "seeded")
    without = [name for name, own in load.classes.items() if own.share is None]
    if without and len(without) < len(load.classes):
        raise Misfit(("workload", "classes", without[0], "share"), "other classes have a share", "a share for each")
    if without and load.recorded is None:
        right = "a share for each, or a trace with a column class"
        raise Misfit(("workload", "classes", without[0], "share"), "it has none, and there is no trace", right)
    for name, own in load.classes.items():
        _check_class(experiment, name, own)


def _check_class(experiment: Experiment, name: str, own: RequestClass) -> None:
    path, load = ("workload", "classes", name), experiment.workload
    if not NAME.fullmatch(name):
        what = f"{name!r} is no name of a class"
        raise Misfit(path, what, "letters, digits, -, _ and ., as in chat-long")
    for module, steps in own.steps.items():
        if module not in load.steps:
            right = suggest(module, list(load.steps)) if load.steps else "no steps"
            raise Misfit((*path, "steps", module), f"the workload has no steps for {module!r}", right)
        if isinstance(steps, TraceSteps):
            right = "steps that are drawn; those of a trace stand in workload.steps, for all classes"
            raise Misfit((*path, "steps", module), "a trace's steps are those of all its requests", right)
    chained = {m for m, said in load.lengths.items() if said.after} | {s.after for s in load.lengths.values()}
    for module, lengths in own.lengths.items():
        where = (*path, "lengths", module)
        if module not in load.lengths:
            right = suggest(module, list(load.lengths)) if load.lengths else "no lengths"
            raise Misfit(where, f"the workload has no lengths for {module!r}", right)
        if module in chained or lengths.after is not None:
            what = f"prompts follow outputs at {module!r} (after), for all classes alike"
            raise Misfit(where, what, "no lengths of this module in classes")
        for side, draw in (("prompt", lengths.prompt), ("output", lengths.output)):
            if isinstance(draw, TraceTokens):
                right = "lengths that are drawn; those of a trace stand in workload.lengths, for all classes"
                raise Misfit((*where, side), "a trace's lengths are those of all its requests", right)
        if isinstance(lengths.prefix, TracePrefix):
            right = "prefix: {draw: shared, ...}; that of a trace stands in workload.lengths, for all classes"
            raise Misfit((*where, "prefix"), "a trace's prompts are those of all its requests", right)
        _check_prediction((*where, "predict"), lengths)
    _check_slo(experiment, name, (*path, "slo"))


def _check_slo(experiment: Experiment, name: str, path: tuple[str, ...]) -> None:
    usual, own, whole = experiment.slo, experiment.workload.classes[name].slo, experiment.slo_of(name)
    if own is None:
        return
    if isinstance(usual, TokenSLOSpec) != isinstance(whole, TokenSLOSpec):
        right = "prefill, decode and limits" if isinstance(usual, TokenSLOSpec) else "factor or seconds"
        raise Misfit(path, "it is of another kind than the experiment's SLO", right)
    if (
        not isinstance(own, TokenSLOSpec)
        or not isinstance(whole, TokenSLOSpec)
        or not isinstance(usual, TokenSLOSpec)
    ):
        return
    if "window" in own.model_fields_set:
        raise Misfit((*path, "window"), "the window is the same for all classes", "slo.window of the experiment")
    for key in ("prefill", "decode"):
        if (getattr(whole, key) is None) != (getattr(usual, key) is None):
            right = "keys that the experiment's SLO has"
            raise Misfit((*path, key), "either all classes have deadlines of tokens or none", right)


def _check_prediction(path: tuple[str, ...], lengths: Lengths) -> None:
    said = lengths.predict
    if not isinstance(said, BucketPrediction):
        return
    if (said.edges is None) == (said.quantiles is None):
        raise Misfit(path, "buckets have edges, or are quantiles", "edges: [64, 256], or quantiles: 5")
    if said.edges is not None and sorted(set(said.edges)) != said.edges:
        raise Misfit((*path, "edges"), "the edges do not rise", "edges: [64, 256, 1024]")


def check_shapes(experiment: Experiment) -> None:
    """Raise `Misfit` if the shapes of requests do not fit the rest."""
    load = experiment.workload
    if not load.shaped:
        return
    path = ("workload", "shape")
    draws: list[tuple[tuple[str, ...], ShapeDraw]] = [] if load.shape is None else [(path, load.shape)]
    for name, own in load.classes.items():
        if own.shape is not None:
            draws.append((("workload", "classes", name, "shape"), own.shape))
            if isinstance(own.shape, TraceShape):
                right = "a shape that is drawn; those of a trace stand in workload.shape, for all classes"
                raise Misfit(draws[-1][0], "a trace's shapes are those of all its requests", right)
        elif load.shape is None:
            what = "other classes have a shape, and this one has none"
            raise Misfit(("workload", "classes", name, "shape"), what, "a shape for each, or workload.shape")
    for where, draw in draws:
        _check_shape(where, draw, experiment)
    if experiment.pipeline.llms:
        what = "requests of language models have no shapes"
        raise Misfit(path, what, "shapes in a pipeline of diffusion models")
    if load.draws != "seeded":
        raise Misfit(("workload", "draws"), "NeuStream's artifact has no shapes that could be repeated", "seeded")
    if experiment.budget.used:
        what = "the SLO is shared out among stages by what one shape takes, and requests have shapes of their own"
        raise Misfit(("budget", "split"), what, "split: none and forward: always")
    shapes = [shape for _, draw in draws for shape in shapes_in(draw)]
    if len({shape.guidance is None for shape in shapes}) > 1:
        what = "some shapes say their guidance, and others do not, so none of these share a batch"
        raise Misfit(draws[0][0], what, "guidance for all shapes, or for none")


def _check_shape(path: tuple[str, ...], draw: ShapeDraw, experiment: Experiment) -> None:
    if isinstance(draw, TraceShape):
        recorded = experiment.workload.recorded
        if recorded is None:
            raise Misfit((*path, "draw"), "the arrivals come from no trace", "constant or choice")
    if not isinstance(draw, ChoiceShape) or draw.weights is None:
        return
    if len(draw.weights) != len(draw.values) or not sum(draw.weights):
        what = "the weights do not fit the values"
        raise Misfit((*path, "weights"), what, "one weight for each value, not all 0")
