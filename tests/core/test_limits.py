"""The durations and bounds fit each other."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise

import pytest

from p2pscoop._core import limits as module
from p2pscoop._core.limits import Limits

LIMITS = Limits()


def test_leases_are_renewed_and_a_renewal_may_be_lost() -> None:
    assert LIMITS.holding_s * 2 < LIMITS.lease_s
    assert LIMITS.resend_max_s < LIMITS.lease_s


def test_outcomes_do_not_wait_longer_than_a_repetition() -> None:
    assert LIMITS.result_delay_s < LIMITS.resend_s <= LIMITS.resend_max_s


def test_a_thief_gives_up_before_it_would_renew_its_registration() -> None:
    assert LIMITS.steal_timeout_s < LIMITS.lifeline_refresh_s


def test_sizes_nest() -> None:
    assert LIMITS.header_max < LIMITS.frame_max < LIMITS.message_max <= LIMITS.assembly_max


def test_a_grant_fits_into_what_a_node_holds() -> None:
    assert LIMITS.steal_batch_max < LIMITS.held_max
    assert LIMITS.tombstones_max <= LIMITS.held_max


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_names_tell_the_unit(name: str) -> None:
    assert name.endswith(("_max", "_min", "_s")) or name == "random_steals"
    assert getattr(LIMITS, name) > 0


def test_every_duration_and_bound_has_a_reason() -> None:
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
    for statement, after in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) != "resend_max_s":
            assert isinstance(after, ast.Expr), ast.unparse(statement)
