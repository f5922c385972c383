"""Everything that is asked of one model type: what is found, what a spec does, which promises are kept."""

import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import peft_compiler as pc
from benchmarks.coverage import models
from benchmarks.coverage.oracle import compare
from benchmarks.coverage.promises import kept_and_broken
from benchmarks.coverage.sentences import Sentence, sentence_for
from benchmarks.coverage.special_inputs import special_inputs
from benchmarks.coverage.targets import Target
from benchmarks.coverage.workers import OutOfTimeError
from peft_compiler.analysis.capture import capture
from peft_compiler.analysis.find_sites import sites_of
from peft_compiler.planning import make_plan
from peft_compiler.site import Site
from peft_compiler.spec.read import read_spec

_LONGEST = 600


def examine(target: Target, weights: bool = True) -> dict[str, Any]:
    """Returns the row of a type, with what needs weights or without; whatever goes wrong is part of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row: dict[str, Any] = {"type": target.model_type, "class": target.class_name, "kind": "other"}
    started = time.process_time()
    try:
        row["kind"] = target.known_kind
        sites = _on_meta(target, row)
        if sites is not None and weights:
            _with_weights(target, row, sentence_for(sites, row["oracle"]["named"]))
    except OutOfTimeError as error:
        # What was found without weights stays, if that was reached.
        row["not_run_with_weights" if "runs_with_weights" in row else "error"] = told(error)
        row["runs_with_weights"] = False
    except Exception as error:  # the class itself cannot be imported, say
        row["error"] = told(error)
    row["seconds"] = round(time.process_time() - started, 1)
    return row


def told(error: BaseException) -> str:
    """Returns an error in one line, with the last place in other people's code where it came up."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
    cause = error.__cause__ or error
    frames = [
        frame for frame in traceback.extract_tb(cause.__traceback__) if "site-packages" in frame.filename
    ]
    modeling = [frame for frame in frames if "/models/" in frame.filename][-1:] or frames[-1:]
    places = [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}" for frame in modeling]
    return f"{text} [{', '.join(places)}]" if places else text


def _on_meta(target: Target, row: dict[str, Any]) -> tuple[Site, ...] | None:
    """Builds without weights, captures, finds sites and compares their roles with the names."""
    row["built"] = row["ran"] = False
    try:
        for how, model in models.on_meta(target):
            row["built"] = True
            inputs = special_inputs(target.model_type, model)
            try:
                graph = capture(model, inputs)
            except Exception as error:
                row["not_run"] = told(error)
                continue
            row.pop("not_run", None)
            row |= {"ran": True, "depth": how, "inputs": "derived" if inputs is None else "given"}
            row["example"] = {
                name: list(value.shape)
                for name, value in graph.example[1].items()
                if isinstance(value, torch.Tensor)
            }
            row["faked"] = graph.faked
            sites = sites_of(graph)
            row["sites"] = dict(Counter(_role(site) for site in sites))
            row["towers"] = sorted({str(site.tower) for site in sites if site.tower})
            row["oracle"] = asdict(compare(graph, sites))
            size = sum(parameter.numel() for parameter in model.parameters())
            _plan(row, sentence_for(sites, row["oracle"]["named"]), sites, size)
            return sites
    except models.BuildError as error:
        row["not_built"] = told(error)
    return None


def _role(site: Site) -> str:
    return f"{site.role} (cross)" if site.cross else str(site.role)


def _plan(row: dict[str, Any], sentence: Sentence, sites: tuple[Site, ...], size: int) -> None:
    row |= {"sentence": sentence.text, "does_not_apply": list(sentence.does_not_apply)}
    row["attention"] = sentence.attention
    row["rules"] = {rule: _planned(rule, sites, size) for rule in sentence.rules}
    row["planned"] = _planned(sentence.text, sites, size) if sentence.text else "no rule applies"


def _planned(text: str, sites: tuple[Site, ...], size: int) -> str:
    """Returns "" where a sentence can be planned, else why not."""
    try:
        make_plan(read_spec(text), sites, size)
    except Exception as error:
        return told(error)
    return ""


def _with_weights(target: Target, row: dict[str, Any], sentence: Sentence) -> None:
    """Compiles a small model with weights and has every promise checked."""
    row["held"] = False
    row["runs_with_weights"] = False
    if not sentence.text:
        row["refused"] = "no rule applies"
        return
    try:
        for how, model in models.with_weights(target):
            try:
                inputs = special_inputs(target.model_type, model)
                inputs = dict(capture(model, inputs).example[1])
                _run(model, inputs)
            except Exception as error:
                row["not_run_with_weights"] = told(error)
                continue
            row.pop("not_run_with_weights", None)
            row |= {"runs_with_weights": True, "weights": how}
            row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            _try_sentence(model, inputs, row, sentence)
            return
    except models.BuildError as error:
        row["not_run_with_weights"] = told(error)


def _run(model: nn.Module, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        model(**inputs)


def _try_sentence(model: nn.Module, inputs: dict[str, Any], row: dict[str, Any], sentence: Sentence) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        tuned = pc.compile(model, sentence.text, inputs)
    except Exception as error:
        row["refused"] = told(error)
        row["held_rules"] = {rule: _held(model, inputs, rule) for rule in sentence.rules}
        return
    kept, row["broken"] = kept_and_broken(tuned)
    row["steps"] = kept.get("decoding step by step equals decoding at once", "")
    same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if not same:
        row["broken"]["the caller's model is as it was"] = "its state changed"
    row["held"] = not row["broken"] and sentence.text != "" and (not sentence.attention or sentence.whole)


def _held(model: nn.Module, inputs: dict[str, Any], rule: str) -> str:
    """Returns "" where a rule alone compiles and keeps its promises, else what happened."""
    try:
        _, broken = kept_and_broken(pc.compile(model, rule, inputs))
    except Exception as error:
        return told(error)
    return "; ".join(f"{promise}: {detail}" for promise, detail in broken.items())
