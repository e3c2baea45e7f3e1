"""What a head tells those who ask at its socket (``roles/reception.py``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.objective import Objective
from bloombee.pipeline.swarm.planning import FirstPlan
from bloombee.plan.choose import with_guesses
from bloombee.plan.document import Document
from bloombee.plan.plan import Plan
from bloombee.plan.problem import Problem, document_of
from bloombee.quote import quoted
from bloombee.roles.head import HeadRole
from bloombee.roles.reception import Told
from bloombee.roles.status import SwarmStatus
from bloombee.roles.status_of import status_of


def told_by(head: HeadRole) -> Mapping[str, Told]:
    """By what is asked: who it is, how its swarm is, who runs what, what a planner would be asked of its swarm
    (docs/topology.md), a token to join it with, and to let the worker go that it is about."""
    return {
        "status": lambda _: _status(head),
        "swarm": lambda _: _swarm(head),
        "plan": lambda _: _plan(head),
        "topology": lambda _: _topology(head),
        "token": lambda _: _token(head),
        "drain": lambda name: _drain(head, name),
    }


def _status(head: HeadRole) -> Callable[[], dict[str, Any]]:
    status = {
        "process": os.getpid(),
        "model": head.config.model,
        "workers": sum(1 for _ in head.members),
        "epoch": head.plan.epoch if head.plan is not None else 0,
        "requests": len(head.desk),
    }
    return lambda: status


def _swarm(head: HeadRole) -> Callable[[], SwarmStatus]:
    status = status_of(head)
    return lambda: status


def _token(head: HeadRole) -> Callable[[], str]:
    token = head.front_door.issue()
    return lambda: token


def _drain(head: HeadRole, name: str) -> Callable[[], dict[str, Any]]:
    """Of the worker that has this number, or calls itself so; done when it is no longer in."""
    _swarm(head)
    members = head.core.members
    numbered = [member for member in members.values() if str(member.id) == name]
    found = numbered or [member for member in members.values() if member.name == name]
    if not found:
        there = ", ".join(sorted(member.name for member in members.values())) or "none"
        raise ConfigError(f"no worker {quoted(name)} is in the swarm; there are: {there}", field="worker", value=quoted(name))
    if len(found) > 1:
        numbers = ", ".join(str(member.id) for member in found)
        raise ConfigError(f"several workers are called {quoted(name)}: say which by its number: {numbers}", field="worker")
    (leaver,) = found
    head.drains.ask(leaver.id, "as was asked for at the head")
    return lambda: {"id": leaver.id, "name": leaver.name}


def _plan(head: HeadRole) -> Callable[[], dict[str, Any]]:
    return _running_plan(head).summary


def _topology(head: HeadRole) -> Callable[[], Document]:
    """With the model, the choices and the objective of the head's own planner, and the KV memory that its plan has."""
    plan, request = _running_plan(head), head.core.request
    wish, num_pages = FirstPlan(request).wish(), plan.groups[0].num_pages
    model, space = wish.shape(head.card, num_pages), wish.space(head.card, num_pages, streams=wish.streams)
    known, estimated = head.observatory.known(head.core, head.members)
    topology, guessed = with_guesses(known, model)
    problem = Problem(topology, model, space, request.objective or Objective())
    about = "what a head knows of its swarm"
    return lambda: document_of(problem, model=plan.model, about=about, guessed=guessed, estimated=estimated)


def _running_plan(head: HeadRole) -> Plan:
    if head.plan is None:
        raise RuntimeClosed("the pipeline of that head is not up yet: it waits for workers, or they load")
    return head.plan
