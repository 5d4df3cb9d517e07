"""Constants that all nodes share: values and functions, defined once, by the main program or by a task.

p2pscoop run -n 4 docs/examples/constants.py
"""

from __future__ import annotations

from p2pscoop import futures, shared


def price(item: str, count: int) -> float:
    prices = shared.get_const("prices")
    discount = shared.get_const("discount")
    total: float = prices[item] * count
    return round(total * discount(count), 2)


def publish() -> None:
    shared.set_const(discount=lambda count: 0.5 if count >= 10 else 1.0)


shared.set_const(prices={"apple": 0.5, "pear": 0.75})
futures.submit(publish).result()
print(list(futures.map(price, ["apple", "pear", "apple"], [3, 4, 12])))
try:
    shared.set_const(prices={})
except TypeError as error:
    print(error)
print(shared.get_const("tax", timeout=0))
