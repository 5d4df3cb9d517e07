"""A genetic algorithm tunes a classifier of handwritten digits.

    p2pscoop run docs/examples/digits_ga.py
    p2pscoop run -n 4 docs/examples/digits_ga.py --population 24 --generations 8

DEAP evolves the two parameters of a support vector machine (the logarithms of C and gamma). The fitness of an
individual is its accuracy on scikit-learn's digits (1,797 images of 8 x 8 pixels, from the UCI repository), by
cross-validation. Each individual is a task, which spawns a task for each fold: whichever node is idle takes what
there is, an individual or a fold.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
from deap import base, creator, tools
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

import p2pscoop
from p2pscoop import futures

Fold = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def folds_of(count: int) -> list[Fold]:
    """Training images and labels, test images and labels, of each fold."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    splitter = StratifiedKFold(count, shuffle=True, random_state=0)
    return [
        (images[train], labels[train], images[test], labels[test])
        for train, test in splitter.split(images, labels)
    ]


def score(log_c: float, log_gamma: float, fold: Fold) -> float:
    """The accuracy on one fold."""
    train_images, train_labels, test_images, test_labels = fold
    machine = SVC(C=2.0**log_c, gamma=2.0**log_gamma).fit(train_images, train_labels)
    return float(machine.score(test_images, test_labels))


def evaluate(individual: Iterable[float], count: int) -> tuple[float]:
    """The fitness of an individual: a task that spawns tasks."""
    log_c, log_gamma = individual
    scores = [futures.submit(score, log_c, log_gamma, fold) for fold in folds_of(count)]
    return (sum(each.result() for each in scores) / count,)


def evaluate_serially(individual: Iterable[float], count: int) -> tuple[float]:
    """The same without a task."""
    log_c, log_gamma = individual
    return (sum(score(log_c, log_gamma, fold) for fold in folds_of(count)) / count,)


def evolve(
    options: argparse.Namespace,
    fitness: Callable[..., tuple[float]],
    map_over: Callable[..., Iterable[tuple[float]]],
) -> tuple[list[float], list[float]]:
    """The best individual, and the best fitness of each generation."""
    draw = random.Random(options.seed)
    toolbox = base.Toolbox()
    toolbox.register("gene", draw.uniform, -8.0, 8.0)
    toolbox.register("individual", tools.initRepeat, creator.Individual, toolbox.gene, 2)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)

    def rate(individuals: list[list[float]]) -> None:
        fresh = [each for each in individuals if not each.fitness.valid]
        for each, values in zip(fresh, map_over(fitness, fresh, [options.folds] * len(fresh)), strict=True):
            each.fitness.values = values

    def child_of(one: list[float], other: list[float]) -> list[float]:
        weight = draw.random()
        return creator.Individual(
            min(8.0, max(-8.0, weight * a + (1 - weight) * b + draw.gauss(0, 1)))
            for a, b in zip(one, other, strict=True)
        )

    population = toolbox.population(options.population)
    rate(population)
    history = []
    for _ in range(options.generations):
        parents = tools.selBest(population, len(population) // 2)
        children = [child_of(*draw.sample(parents, 2)) for _ in range(len(population) - len(parents))]
        rate(children)
        population = parents + children
        history.append(max(each.fitness.values[0] for each in population))
    return list(tools.selBest(population, 1)[0]), history


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune a classifier of digits by a genetic algorithm.")
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with a serial run")
    options = parser.parse_args()
    creator.create("Fitness", base.Fitness, weights=(1.0,))
    creator.create("Individual", list, fitness=creator.Fitness)

    began = time.perf_counter()
    best, history = evolve(options, evaluate, futures.map)
    seconds = time.perf_counter() - began
    print("best accuracy by generation:", " ".join(f"{each:.4f}" for each in history))
    print(f"best: C = 2**{best[0]:.2f}, gamma = 2**{best[1]:.2f}, after {seconds:.1f} s")
    for each in p2pscoop.statistics():
        print(f"{each.name}: ran {each.executed} tasks, stole {each.stolen} of them")

    if options.check:
        began = time.perf_counter()
        if (best, history) != evolve(options, evaluate_serially, map):
            sys.exit("the serial run finds something else")
        print(f"the serial run finds the same, after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
