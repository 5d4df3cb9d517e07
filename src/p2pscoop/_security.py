"""The key of a cluster: how it is made, kept and found, and what TLS gets of it.

Whoever has the key can run any code as the user whose nodes have it; nobody else can do anything. Connections
between machines are TLS 1.3 with a pre-shared key, on both sides: a peer without the key does not get as far as
sending a byte that is looked at here. What TLS gets is derived from the key (RFC 5869 calls this the expand step;
here it is keyed BLAKE2), and so is the identity by which a listener that accepts two keys tells them apart.

Decides nothing about who listens where. Keys never appear in a `repr`, a log, an argument list or an environment
that this package makes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pscoop.errors import ConfigurationError

__all__ = [
    "CLUSTER_VARIABLE",
    "DEFAULT_CLUSTER",
    "KEY_VARIABLE",
    "ClusterKey",
    "checked_cluster",
    "cluster_tag",
    "find_keys",
    "key_path",
    "parse_keys",
    "read_keys",
    "write_keys",
]

KEY_VARIABLE = "P2PSCOOP_KEY"
"""Environment variable with the text of a key, as `keygen` writes it."""
CLUSTER_VARIABLE = "P2PSCOOP_CLUSTER"
"""Environment variable with the name of the cluster, if it is not the default."""
DEFAULT_CLUSTER = "default"

_KEY_SIZE = 32
_KEYS_MAX = 2
"""In a change-over there are two."""
_PREFIX = "p2pscoop-key-1:"
"""So that a key is known for one, wherever it turns up, and its format can change."""
_FILE_SIZE_MAX = 4096
_CLUSTER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TLS_1_3 = 0x304


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """One key.

    Attributes:
        secret: 32 random bytes.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> ClusterKey:
        """A new key, from the system's generator."""
        return cls(os.urandom(_KEY_SIZE))

    @classmethod
    def from_text(cls, text: str) -> ClusterKey:
        """Undo `to_text`.

        Raises:
            ConfigurationError: this is no key. The message does not repeat it.
        """
        text = text.strip()
        if not text.startswith(_PREFIX):
            raise ConfigurationError(f"this is no key: it does not start with {_PREFIX}")
        try:
            secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ConfigurationError("this is no key: what follows the prefix is not base64") from None
        if len(secret) != _KEY_SIZE:
            raise ConfigurationError(f"the key has {len(secret)} bytes instead of {_KEY_SIZE}: was it cut off?")
        return cls(secret)

    def to_text(self) -> str:
        """One line of text."""
        return _PREFIX + base64.b64encode(self.secret).decode()

    @property
    def identity(self) -> str:
        """Names the key in the handshake. Public: it says nothing about the key."""
        return self._derive(b"identity", 16).hex()

    @property
    def fingerprint(self) -> str:
        """For people who want to compare keys without showing them."""
        return self.identity[:8]

    @property
    def tls_secret(self) -> bytes:
        """What TLS proves to know."""
        return self._derive(b"tls", _KEY_SIZE)

    def _derive(self, purpose: bytes, size: int) -> bytes:
        return hashlib.blake2b(purpose, key=self.secret, digest_size=size, person=b"p2pscoop").digest()


def cluster_tag(cluster: str) -> str:
    """What nodes and mDNS show of a cluster's name."""
    return hashlib.blake2b(cluster.encode(), digest_size=8, person=b"p2pscoop-name").hexdigest()


def checked_cluster(name: str) -> str:
    """The name of a cluster.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if not _CLUSTER_PATTERN.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a cluster: use at most 63 letters, digits, dots, hyphens, underscores"
        )
    return name


# --------------------------------------------------------------------------------------- where keys are


def key_path(cluster: str) -> Path:
    """Where `keygen` puts the key of a cluster: in the user's configuration directory."""
    from click import get_app_dir

    return Path(get_app_dir("p2pscoop")) / "keys" / f"{checked_cluster(cluster)}.key"


def find_keys(
    cluster: str, key_file: str | os.PathLike[str] | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[ClusterKey, ...]:
    """The keys of a cluster: of the file that is named, else of `P2PSCOOP_KEY`, else of the file of `keygen`.

    Returns:
        The key that this side proves to others, and the other one that it accepts, if there are two.

    Raises:
        ConfigurationError: there is none, or it cannot be used.
    """
    if key_file is not None:
        return read_keys(Path(key_file))
    text = environment.get(KEY_VARIABLE)
    if text is not None:
        try:
            return parse_keys(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{KEY_VARIABLE}: {error}") from None
    path = key_path(cluster)
    if not path.exists():
        name = "" if cluster == DEFAULT_CLUSTER else f" --name {cluster}"
        raise ConfigurationError(
            f"there is no key of the cluster {cluster!r} ({path} does not exist): on its first machine run "
            f"`p2pscoop keygen{name}`, and copy that file to the same place on the others; or give --key-file, or "
            f"set {KEY_VARIABLE}"
        )
    return read_keys(path)


def read_keys(path: Path) -> tuple[ClusterKey, ...]:
    """The keys of a file, the first of which is proved to others.

    Raises:
        ConfigurationError: the file is missing, or is none of keys, or others can read it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"key file {path}: {error.strerror}") from error
    if os.name == "posix":
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigurationError(
                f"key file {path}: other users have access to it (mode {mode:04o}); run `chmod 600 {path}`, and "
                "make a new key if somebody may have read it"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigurationError(f"key file {path}: it belongs to another user (uid {status.st_uid})")
    try:
        if len(data) > _FILE_SIZE_MAX:
            raise ConfigurationError("it is too long")
        return parse_keys(data.decode("utf-8", "replace"))
    except ConfigurationError as error:
        raise ConfigurationError(f"key file {path}: {error}") from None


def parse_keys(text: str) -> tuple[ClusterKey, ...]:
    """The keys in a text: one a line, with empty lines and lines that start with `#` between them.

    Raises:
        ConfigurationError: there is none, or one too many, or a line is no key.
    """
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(ClusterKey.from_text(line) for line in lines if line and not line.startswith("#"))
    if not 1 <= len(keys) <= _KEYS_MAX:
        raise ConfigurationError(f"there are {len(keys)} keys in it; there must be one, or two in a change-over")
    return keys


def write_keys(path: Path, keys: Sequence[ClusterKey], *, replace: bool, note: str = "") -> None:
    """Write a key file that only the user can read (0600), whole or not at all.

    Args:
        path: of the file.
        keys: one, or two in a change-over.
        replace: whether there may be one already.
        note: a line for people, after them.

    Raises:
        ConfigurationError: it exists and is not to be replaced, or cannot be written.
    """
    lines = ["# The key of a p2pscoop cluster. Whoever has it can run code as you on its machines.\n"]
    lines += [key.to_text() + "\n" for key in keys]
    lines += [f"# {note}\n"] if note else []
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)  # Made with mode 0600.
        try:
            with os.fdopen(handle, "w") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)  # Fails if there is one, however close the race.
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists already") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
