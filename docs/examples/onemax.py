"""OneMax with DEAP: evolve a string of ones. The only line for many nodes is the one that registers `map`.

p2pscoop run -n 4 docs/examples/onemax.py
"""

from __future__ import annotations

import random

from deap import algorithms, base, creator, tools

from p2pscoop import futures


def count_ones(individual: list[int]) -> tuple[int]:
    return (sum(individual),)


def main() -> None:
    random.seed(11)
    creator.create("Fitness", base.Fitness, weights=(1.0,))
    creator.create("Individual", list, fitness=creator.Fitness)
    toolbox = base.Toolbox()
    toolbox.register("map", futures.map)
    toolbox.register("bit", random.randint, 0, 1)
    toolbox.register("individual", tools.initRepeat, creator.Individual, toolbox.bit, 60)
    toolbox.register("evaluate", count_ones)
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", tools.mutFlipBit, indpb=0.03)
    toolbox.register("select", tools.selTournament, tournsize=3)
    population = tools.initRepeat(list, toolbox.individual, 80)
    population, _ = algorithms.eaSimple(population, toolbox, cxpb=0.6, mutpb=0.3, ngen=25, verbose=False)
    best = tools.selBest(population, 1)[0]
    print(f"best of the last generation: {sum(best)} of {len(best)} ones")


if __name__ == "__main__":
    main()
