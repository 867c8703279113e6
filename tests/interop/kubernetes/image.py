"""The container image without a container engine: a Debian made for it, and in it each step of the
Dockerfile, one after the other.
"""

import hashlib
import io
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser
from programs import CHECKOUT, program

DOCKERFILE = CHECKOUT / "deploy" / "image" / "Dockerfile"
_SUITE = "bookworm"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SECONDS = 1800


@dataclass(slots=True)
class Image:
    """A file system, and what is started in it how."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    entrypoint: tuple[str, ...] = ()
    user: str = "0:0"

    def copy(self, to: Path) -> "Image":
        subprocess.run(["cp", "-a", self.root, to], check=True)
        return Image(to)


def debian(directory: Path) -> Image:
    """The base: a Debian with Python and nothing else."""
    root = directory / "base"
    if not root.exists():
        made = directory / "being-made"
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(
            [program("mmdebstrap", "mmdebstrap"), "--quiet", "--variant=minbase",
             "--include=python3,python3-venv,ca-certificates", _SUITE, made],
            check=True, timeout=_SECONDS,
        )  # fmt: skip
        # This machine's way out: names, and the authority of its proxy if it has one.
        shutil.copy("/etc/resolv.conf", made / "etc" / "resolv.conf")
        shutil.copy(_CERTIFICATES, made / _CERTIFICATES.relative_to("/"))
        made.rename(root)
    return Image(root)


def build(base: Image, directory: Path) -> Image:
    """What the Dockerfile makes of `base`, with what `make wheel sbom` put into dist/. Where it was
    made of the same before, its files are taken as they are."""
    stages: dict[str, Image] = {}
    image = base
    lines = DockerfileParser(fileobj=io.BytesIO(DOCKERFILE.read_bytes())).structure
    made, key = directory / "made", _key(lines)
    known = made.exists() and made.read_text() == key
    made.unlink(missing_ok=True)
    for line in lines:
        value = line["value"]
        match line["instruction"]:
            case "FROM":
                name = value.partition(" AS ")[2] or "final"
                if not known:
                    shutil.rmtree(directory / name, ignore_errors=True)
                    base.copy(directory / name)
                image = stages[name] = Image(directory / name)
            case "RUN":
                if not known:
                    _run(image, value)
            case "COPY":
                if not known:
                    _copy(image, stages, shlex.split(value))
            case "ENV":
                for word in shlex.split(value):
                    name, _, text = word.partition("=")
                    image.environment[name] = Template(text).substitute(image.environment)
            case "WORKDIR":
                (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = value
            case "ENTRYPOINT":
                image.entrypoint = tuple(word.strip(' "') for word in value.strip("[]").split(","))
            case "ARG" | "COMMENT" | "HEALTHCHECK" | "CMD":
                pass
            case other:
                raise AssertionError(f"{DOCKERFILE}: nobody runs {other} here")
    made.write_text(key)
    return image


def _key(lines: Sequence[Mapping[str, str]]) -> str:
    """Of the definition, and of all that it copies out of the checkout."""
    found = hashlib.sha256(DOCKERFILE.read_bytes())
    for line in lines:
        if line["instruction"] == "COPY" and "--from" not in line["value"]:
            for pattern in shlex.split(line["value"])[:-1]:
                for path in sorted(CHECKOUT.glob(pattern)):
                    found.update(path.read_bytes())
    return found.hexdigest()


def _run(image: Image, command: str) -> None:
    """As the builder does it: by the shell, as root, with a network."""
    inside = (
        'mount --rbind /dev "$1/dev"; mount -t proc proc "$1/proc"; exec chroot "$1" sh -c "$2"'
    )
    shared = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "SSL_CERT_FILE"}
    shared.pop("PIP_FIND_LINKS", None)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", inside, "sh", image.root, command.replace("\\\n", " ")],
        env=shared | image.environment | {"DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True, text=True, check=False, timeout=_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _copy(image: Image, stages: dict[str, Image], words: list[str]) -> None:
    *sources, target = words
    from_root = CHECKOUT
    if sources[0].startswith("--from="):
        from_root = stages[sources.pop(0).removeprefix("--from=")].root
    place = image.root / target.lstrip("/")
    for pattern in sources:
        found = list(from_root.glob(pattern.lstrip("/")))
        assert found, f"{pattern}: nothing to copy; run: make wheel sbom"
        for path in found:
            if from_root == CHECKOUT:
                assert (
                    f"!{pattern}\n" in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
                )
            if target.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", path, place], check=True)
