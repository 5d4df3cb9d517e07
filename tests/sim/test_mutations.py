"""The simulator catches known bugs, so that its silence means something."""

from __future__ import annotations

import pytest

from p2pscoop.testing import run_seed
from p2pscoop.testing.mutations import HARMLESS, MUTATIONS, Mutation, first_seed_that_catches

SEEDS = 40
LATE = {"what comes back is a repetition"}
"""Caught by one seed in hundreds; the command looks for as long as it is told to."""


@pytest.mark.parametrize(
    "mutation", [each for each in MUTATIONS if each.name not in HARMLESS | LATE], ids=lambda each: each.name
)
def test_is_caught(mutation: Mutation) -> None:
    assert first_seed_that_catches(mutation, SEEDS) is not None


@pytest.mark.parametrize(
    "mutation", [each for each in MUTATIONS if each.name in HARMLESS], ids=lambda each: each.name
)
def test_membership_is_a_hint(mutation: Mutation) -> None:
    assert first_seed_that_catches(mutation, SEEDS) is None


@pytest.mark.parametrize("faults", list(dict.fromkeys(each.faults for each in MUTATIONS)))
def test_the_same_faults_break_nothing_without_a_bug(faults) -> None:
    for seed in range(SEEDS):
        run_seed(seed, faults=faults, events_max=150_000)


def test_what_is_put_in_is_taken_out() -> None:
    for mutation in MUTATIONS:
        before = mutation.owner.__dict__[mutation.method]
        with mutation.applied():
            assert mutation.owner.__dict__[mutation.method] is not before
        assert mutation.owner.__dict__[mutation.method] is before
