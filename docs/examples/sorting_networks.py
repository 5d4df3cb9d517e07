"""Evolve a sorting network with DEAP. All evaluations are tasks, and each of them is a few thousand comparisons.

    p2pscoop run -n 4 docs/examples/sorting_networks.py --inputs 6 --generations 20

A network is a list of pairs of wires; each pair swaps its two values if they are in the wrong order. One that
sorts all sequences of zeros and ones sorts everything (the zero-one principle).
"""

from __future__ import annotations

import argparse
import itertools
import random
from functools import partial

from deap import base, creator, tools

from p2pscoop import futures

Network = list[tuple[int, int]]


def unsorted(inputs: int, network: Network) -> tuple[int, int]:
    """How many sequences of zeros and ones it does not sort, and its length."""
    wrong = 0
    for sequence in itertools.product((0, 1), repeat=inputs):
        values = list(sequence)
        for low, high in network:
            if values[low] > values[high]:
                values[low], values[high] = values[high], values[low]
        wrong += values != sorted(sequence)
    return wrong, len(network)


def random_pair(inputs: int) -> tuple[int, int]:
    low, high = sorted(random.sample(range(inputs), 2))
    return low, high


def mutate(inputs: int, network: Network) -> Network:
    """Change, add or remove one pair."""
    where = random.randrange(len(network))
    kind = random.choice(("change", "add", "remove"))
    if kind == "change":
        network[where] = random_pair(inputs)
    elif kind == "add":
        network.insert(where, random_pair(inputs))
    elif len(network) > 1:
        del network[where]
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description="Evolve a sorting network.")
    parser.add_argument("--inputs", type=int, default=5)
    parser.add_argument("--population", type=int, default=60)
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    random.seed(options.seed)
    creator.create("Fitness", base.Fitness, weights=(-1.0, -0.1))
    creator.create("Network", list, fitness=creator.Fitness)
    evaluate = partial(unsorted, options.inputs)
    population = [
        creator.Network(random_pair(options.inputs) for _ in range(2 * options.inputs))
        for _ in range(options.population)
    ]
    for each, fitness in zip(population, futures.map(evaluate, population), strict=True):
        each.fitness.values = fitness
    first = tools.selBest(population, 1)[0].fitness.values[0]
    for _ in range(options.generations):
        parents = tools.selTournament(population, options.population, tournsize=3)
        children = [creator.Network(mutate(options.inputs, list(parent))) for parent in parents]
        for each, fitness in zip(children, futures.map(evaluate, children), strict=True):
            each.fitness.values = fitness
        population = tools.selBest(population + children, options.population)
    best = population[0]
    wrong, length = best.fitness.values
    print(f"of {2**options.inputs} sequences, the first generation's best left {first:.0f} unsorted")
    print(f"the last one's leaves {wrong:.0f}, with {length:.0f} pairs")


if __name__ == "__main__":
    main()
