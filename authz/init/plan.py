"""Files that are to be written, and what comes next."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from authz.demo.stack import deploy_dir
from authz.errors import UsageError

USERS = ("auditor", "backup", "feeds", "grafana", "migrator", "reader", "receiver", "retention",
         "watch")  # fmt: skip


@dataclass(slots=True)
class Plan:
    """`files` are bytes and mode, by their path below the directory."""

    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)
    """What to do next, and the command for it, to be typed in the directory."""

    def add(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.files[path] = (data, mode)

    def secret(self, path: str, content: str) -> None:
        """For its owner alone."""
        self.add(path, content, 0o600)

    def step(self, text: str, command: str = "") -> None:
        self.steps.append((text, command))

    def write(self, directory: Path) -> list[str]:
        """Raises `UsageError` if something is in `directory` already."""
        refuse_used(directory)
        try:
            for name, (data, mode) in sorted(self.files.items()):
                path = directory / name
                private = mode == 0o600
                path.parent.mkdir(parents=True, exist_ok=True)
                if private and path.parent.name in ("keys", "passwords", "secrets", "tokens"):
                    path.parent.chmod(0o700)
                path.touch(0o600)
                path.chmod(mode)
                path.write_bytes(data)
        except OSError as error:
            raise UsageError(f"{directory}: {error.strerror}; choose another directory") from None
        return sorted(self.files)


def refuse_used(directory: Path) -> None:
    """Raises `UsageError`."""
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise UsageError(
            f"{directory} is there already, and nothing in it is written over; name a new"
            " directory, or empty this one"
        )


def shipped(path: str) -> str:
    """A file of deploy/."""
    return (deploy_dir() / path).read_text(encoding="utf-8")


def mode_of(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def copy(plan: Plan, source: str, target: str) -> None:
    """A file or directory of deploy/, as it is; without READMEs and tests."""
    root = deploy_dir() / source
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".pyc") and "_test." not in path.name:
            inner = path.relative_to(root)
            name = target if path == root else f"{target}/{inner.as_posix()}"
            plan.add(name, path.read_bytes(), mode_of(path))


def privacy_key() -> str:
    return secrets.token_hex(32) + "\n"


def database(plan: Plan, directory: str) -> dict[str, str]:
    """The database's users, with a password for each; the passwords by user."""
    made = {user: secrets.token_urlsafe(24) for user in USERS}
    for user, password in made.items():
        plan.secret(f"{directory}/{user}.password", password + "\n")
    for name in ("users.sh", "sql/roles.sql", "sql/limits.sql", "sql/users.sql"):
        copy(plan, f"clickhouse/{name}", f"clickhouse/{name}")
    return made
