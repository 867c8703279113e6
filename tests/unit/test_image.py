"""deploy/image: what the image is made of, and where it is: one place, by digest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kustomized import KUBERNETES, KUSTOMIZE, OVERLAYS, Object, build, built, pods
from manifests import go_program
from pages import block
from programs import CHECKOUT


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> tuple[Path, str]:
    """A copy of deploy in which each page's command that says where the image is was run, and where
    the last of them says."""
    copy = tmp_path_factory.mktemp("placed")
    shutil.copytree(KUBERNETES.parent, copy / "deploy")
    page = (CHECKOUT / "docs" / "kubernetes.md").read_text()
    [line] = re.findall(r"^\(cd .* && kustomize edit set image .*\)$", page, re.MULTILINE)
    pushed = block("deploy/image/README.md", "cd deploy").replace(
        "sha256:...", f"sha256:{'5' * 64}"
    )
    kustomize = Path(go_program("kustomize", KUSTOMIZE)).parent
    for text in (line, pushed):
        subprocess.run(
            ["sh", "-eu", "-c", text], cwd=copy, check=True, timeout=60,
            env={**os.environ, "PATH": f"{kustomize}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    [place] = re.findall(r"authz=(\S+)", pushed)
    return copy / "deploy" / "kubernetes" / "overlays", place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_has_one_place(overlay, placed):
    """By these commands every container of authz is of the digest that was pushed, and no other."""

    def images(found: tuple[Object, ...]) -> list[str]:
        return [container["image"] for one in pods(found) for container in one.containers]

    copies, place = placed
    shipped = images(built(overlay))
    found = images(build(copies / overlay))
    assert found == [place if "/authz:" in name else name for name in shipped]
    assert found.count(place) >= 7


def test_the_image_definition():
    """hadolint finds nothing in it; nothing comes in but by hash or digest."""
    hadolint = Path(sys.executable).with_name("hadolint")
    path = CHECKOUT / "deploy" / "image" / "Dockerfile"
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    text = path.read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert "\nARG BASE\n" in text  # no default
    assert text.count("pip install") == text.count("--require-hashes") + text.count("--no-index")


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        ("", "BASE by digest"),
        ("python:3.13-slim-bookworm", "BASE by digest"),
        ("python:3.13-slim-bookworm@sha256:...", "BASE by digest"),
        (f"python:3.13-slim-bookworm@sha256:{'a' * 63}", "BASE by digest"),
        (f"python:3.13-slim-bookworm@sha256:{'0a' * 32}", "IMAGE"),
    ],
)
def test_the_images_base_is_a_digest(base, asked):
    """A base by its tag, or half a digest, is refused before anything is built."""
    image = "" if asked == "IMAGE" else "registry.example.org/authz:0.1.0"
    done = subprocess.run(
        ["make", "--no-print-directory", "image", f"IMAGE={image}", f"BASE={base}"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(f"give {asked}.*: deploy/image/README.md\n", done.stdout)


def test_an_image_by_digest_is_built():
    """What is named as it should be goes on to the builder."""
    base = f"python:3.13-slim-bookworm@sha256:{'0a' * 32}"
    given = ["IMAGE=registry.example.org/authz:0.1.0", f"BASE={base}", "BUILD_IMAGE=build"]
    named = subprocess.run(
        ["make", "--no-print-directory", "image-named", *given], cwd=CHECKOUT, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (named.returncode, named.stdout) == (0, ""), named.stdout
    line = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "image", *given], cwd=CHECKOUT,
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()[-1]  # fmt: skip
    assert line == (
        f"build --file deploy/image/Dockerfile --build-arg BASE={base}"
        " --tag registry.example.org/authz:0.1.0 ."
    )
