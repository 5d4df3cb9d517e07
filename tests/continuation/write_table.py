"""Write the matrix into `docs/continuations.md`: `python -m tests.continuation.write_table`."""

from __future__ import annotations

from pathlib import Path

from tests.continuation.constructs import table

BEGIN = "<!-- Written by tests/continuation/write_table.py from tests/continuation/constructs.py. -->\n"
END = "<!-- End of the table. -->\n"


def main() -> None:
    path = Path(__file__).parents[2] / "docs" / "continuations.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}{table()}{END}{after}")


if __name__ == "__main__":
    main()
