"""The submit files, run as the scheduler would run them, with the environment that it would make.

No scheduler runs here: what is tested is that each file starts its program on the hosts of its job.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY, TIMEOUT_S, Script

HERE = socket.gethostname()
NAMES = """
    import time
    import p2pscoop

    while p2pscoop.SIZE < 2:
        p2pscoop.futures.wait([p2pscoop.futures.submit(time.sleep, 0.01)])
    print(*sorted(each.name for each in p2pscoop.statistics()))
"""


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("slurm", {"SLURM_JOB_NODELIST": HERE, "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}),
        ("pbs", {"PBS_NODEFILE": "{file}"}),
        ("sge", {"PE_HOSTFILE": "{slots}"}),
        ("lsf", {"LSB_MCPU_HOSTS": f"{HERE} 2"}),
    ],
)
def test_submit_file(
    script: Callable[[str], Script], tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    (tmp_path / "file").write_text(f"{HERE}\n{HERE}\n")
    (tmp_path / "slots").write_text(f"{HERE} 2 all.q UNDEFINED\n")
    files = {"file": str(tmp_path / "file"), "slots": str(tmp_path / "slots")}
    done = subprocess.run(
        ["sh", REPOSITORY / "docs" / "submit" / f"{name}.sh"],
        env={
            **os.environ,
            **{key: value.format(**files) for key, value in environment.items()},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SCRIPT": str(script(NAMES).path),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "n1 origin\n"
