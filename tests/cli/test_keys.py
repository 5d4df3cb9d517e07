"""`p2pscoop keygen`, and what can be wrong with keys."""

from __future__ import annotations

import itertools
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pscoop._security import ClusterKey, find_keys, parse_keys, read_keys
from p2pscoop.errors import ConfigurationError


def keygen(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pscoop", "keygen", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_written_for_the_user_only_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = keygen("--name", "lab")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("*.key")
    assert path.name == "lab.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = find_keys("lab", environment={})
    assert key.fingerprint in done.stdout
    assert key.to_text() not in done.stdout
    again = keygen("--name", "lab")
    assert again.returncode == 1
    assert "exists already: --rotate changes the key" in again.stderr
    assert read_keys(path) == (key,)
    assert key.fingerprint in keygen("--name", "lab", "--show").stdout


def test_a_key_is_changed_in_three_steps_of_which_neighbours_always_understand_each_other(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert keygen("--key-file", str(path)).returncode == 0
    steps = [read_keys(path)]
    for _ in range(3):
        assert keygen("--key-file", str(path), "--rotate").returncode == 0
        steps.append(read_keys(path))
    (old,), (new,) = steps[0], steps[-1]
    assert old != new
    assert steps == [(old,), (old, new), (new, old), (new,)]
    for one, other in itertools.pairwise(steps):
        assert one[0] in other
        assert other[0] in one


def test_what_can_be_wrong_with_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    text = ClusterKey.generate().to_text()

    def complaint(content: str, mode: int = 0o600) -> str:
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(ConfigurationError) as caught:
            read_keys(path)
        assert text.partition("1:")[2] not in str(caught.value)
        return str(caught.value)

    assert "mode 0640" in complaint(text, 0o640)
    assert f"chmod 600 {path}" in complaint(text, 0o604)
    assert "has 30 bytes instead of 32" in complaint(text[:-4])
    assert "not base64" in complaint(text[:-2] + "!!")
    assert "does not start with" in complaint("hunter2")
    assert "there are 0 keys" in complaint("# nothing\n")
    assert "there are 3 keys" in complaint("\n".join([text] * 3))
    assert "too long" in complaint("#" * 5000)
    with pytest.raises(ConfigurationError, match="No such file"):
        read_keys(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_keys(tmp_path)


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    named, given = ClusterKey.generate(), ClusterKey.generate()
    path = tmp_path / "named"
    path.write_text(named.to_text())
    path.chmod(0o600)
    assert find_keys("c", path, {"P2PSCOOP_KEY": given.to_text()}) == (named,)
    assert find_keys("c", None, {"P2PSCOOP_KEY": given.to_text()}) == (given,)
    with pytest.raises(ConfigurationError, match="P2PSCOOP_KEY: this is no key"):
        find_keys("c", None, {"P2PSCOOP_KEY": "x"})
    with pytest.raises(ConfigurationError, match="run `p2pscoop keygen --name c`"):
        find_keys("c", None, {})


def test_a_key_does_not_show_itself() -> None:
    key = ClusterKey.generate()
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)
    assert parse_keys(key.to_text()) == (key,)
    assert len({key.secret, key.tls_secret, bytes.fromhex(key.identity)}) == 3
