"""Each overlay of deploy/kubernetes, run: its containers, in the image that the Dockerfile makes,
without a container engine or a cluster. Wants root: `make kubernetes`.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from cluster import Cluster, cluster
from image import Image, build, debian
from kustomized import OVERLAYS
from programs import CHECKOUT, free_port, program, until

from authz.demo.stack import envoy_program

PAGE = CHECKOUT / "docs" / "kubernetes.md"
CACHE = Path.home() / ".cache" / "authz-image"
CHART = "/fhir/Patient/p-0001"


@pytest.fixture(scope="session")
def images(opa) -> dict[str, Image]:
    """By the names that manifests have them by."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and other users")
    for name, package in (("bwrap", "bubblewrap"), ("socat", "socat")):
        program(name, package)
    base = debian(CACHE)
    made = {"authz": build(base, CACHE)}
    for name, path, entrypoint in (
        ("envoy", envoy_program(), ()),
        ("opa", opa, ("opa",)),
    ):
        made[name] = base.copy(CACHE / name) if not (CACHE / name).exists() else Image(CACHE / name)
        made[name].entrypoint = entrypoint
        subprocess.run(["install", path, CACHE / name / "usr" / "local" / "bin" / name], check=True)
    return made


def test_the_image(images, tmp_path):
    """The program runs as the image's user, in a file system that it cannot write to; what Envoy is
    drained with is there, and what reports as PDF need; nothing to install more with."""
    from containers import Container

    image = images["authz"]
    user, group = map(int, image.user.split(":"))
    tried = {
        "authz --help": "Audited access",
        "authz config": "data_dir",
        "python -c 'from authz.report.pages import check_pdf; check_pdf(); print(1)'": "1",
        "drain.sh /run/none.sock || echo $?": "2",
        "touch /opt/authz/x || touch /x || touch /etc/x || echo closed": "closed",
        "pip --version || echo none": "none",
        "id -u": str(user),
        "cat /usr/share/doc/authz/authz.cdx.json": "CycloneDX",
    }
    for number, (line, said) in enumerate(tried.items()):
        log = tmp_path / f"{number}.log"
        container = Container(image, ["sh", "-c", line], {}, [], user, [group], log)
        container.start()
        assert container.wait(120) == 0, log.read_text()
        assert said in log.read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay(overlay, images, opa, tmp_path):
    """All its pods come up by themselves, whatever comes first; a request is allowed and one
    denied, through Envoy; both are stored, and the log is verified; every container ends when it is
    told to, and every hook well."""
    with cluster(overlay, tmp_path, images, opa) as house:
        begin = time.monotonic()
        house.start()
        print(f"{overlay}: up in {time.monotonic() - begin:.0f} s")
        assert asyncio.run(ask(house, ["alder", "hazel", ""])) == [200, 403, 401]
        counted(house, matched=2, rejected_by_envoy=1)
        if overlay == "autoscaled":
            a_bundle_that_is_forged(house)
        house.stop()
        for running in house.instances.values():
            assert running.killed == [], running.called
            assert set(running.hooks.values()) <= {0}
            assert not {"opa", "ext-authz", "envoy", "envoy-drain"} & running.restarts.keys()


def a_bundle_that_is_forged(house: Cluster) -> None:
    """It changes nothing, and the metric that is alerted on counts it."""
    (house.directory / "bundles" / "authz" / "bundle.tar.gz").write_bytes(b"anything")
    url = f"http://{house.network.address('fhir-0')}:8282/metrics"

    def refused() -> bool:
        with house.network.on("fhir-0"), urllib.request.urlopen(url, timeout=5) as answer:
            return b"bundle_failed_load_counter{" in answer.read()

    assert until(refused, 60)
    assert asyncio.run(ask(house, ["alder", "hazel"])) == [200, 403]


async def ask(house: Cluster, people: list[str]) -> list[int]:
    """How each of them is answered; nobody is "", who has no token."""
    found = []
    name = None if house.plain else "fhir.fhir.svc"
    with house.network.on("fhir-0"):
        async with aiohttp.ClientSession() as client:
            for person in people:
                headers = {"authorization": f"Bearer {house.token(person)}"} if person else {}
                async with client.get(
                    house.url() + CHART, headers=headers, ssl=house.context(), server_hostname=name
                ) as response:
                    found.append(response.status)
    return found


def counted(house: Cluster, **expected: int) -> None:
    """The log comes to tell of so many requests, of no gap, and is intact."""
    told: dict[str, object] = {}

    def as_expected() -> bool:
        done = house.authz("verify", "--trust", "/var/lib/authz/trust.yaml", "--json")
        told.update(json.loads(done.stdout))
        return expected.items() <= told.items()

    assert until(as_expected, 90), told
    assert told["verified"] is True
    assert told["gaps"] == {}


def test_a_rollout_under_traffic(images, opa, tmp_path):
    """One pod takes another's place while requests come. Every request that was answered, also
    while the old pod went, has its decision and its access; and none got another answer than the
    policy's."""
    with cluster("demo", tmp_path, images, opa, ["fhir-1"]) as house:
        # Without who would find it unusual that somebody opens one chart so often, and bar them.
        later = {"fhir-1", "watch-0"}
        house.start(*(name for name in house.instances if name not in later))
        answers: Counter[int] = Counter()
        serving, ended = ["fhir-0"], threading.Event()
        with ThreadPoolExecutor(5) as pool:
            working = [
                pool.submit(lambda: asyncio.run(traffic(house, serving, answers, ended)))
                for _ in range(4)
            ]
            time.sleep(3)
            house.start("fhir-1")
            serving.append("fhir-1")  # both are in the Service
            time.sleep(2)
            leaving = pool.submit(house.instances["fhir-0"].stop)
            time.sleep(1)  # as long as it takes until all nodes know
            serving.remove("fhir-0")
            leaving.result()
            time.sleep(2)
            ended.set()
            for each in working:
                each.result()
        print(f"rollout: {dict(answers)}")
        assert set(answers) == {200}
        assert answers[200] > 100
        counted(house, matched=answers[200], rejected_by_envoy=0)
        house.stop()


async def traffic(
    house: Cluster, serving: list[str], answers: "Counter[int]", ended: threading.Event
) -> None:
    """Requests to the pods that serve, over connections that are kept while Envoy keeps them."""
    with house.network.on("outside"):
        async with aiohttp.ClientSession() as client:
            number = 0
            tokens: dict[str, str] = {}
            while not ended.is_set():
                number += 1
                called = serving[number % len(serving)]
                if called not in tokens:
                    tokens[called] = await asyncio.to_thread(house.token, "alder", called)
                headers = {"authorization": f"Bearer {tokens[called]}"}
                async with client.get(house.url(called) + CHART, headers=headers) as response:
                    await response.read()
                    answers[response.status] += 1
                await asyncio.sleep(0.02)


def test_the_quickstart(images, opa, tmp_path):
    """The page's commands, as they stand there, on the demo's pods, do what it says."""
    port = free_port()
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    text = text.replace("8080:80", f"{port}:80").replace("localhost:8080", f"localhost:{port}")
    # Nobody types as fast as this: the look is asked for until the request is in the log.
    text, looks = re.subn(r"(?m)^(\$ask lookup .*)$", r"until \1; do sleep 1; done", text)
    assert looks == 1
    with cluster("demo", tmp_path, images, opa) as house:
        house.start()
        state = tmp_path / "state.json"
        state.write_text(json.dumps(house.state()))
        shim = tmp_path / "bin" / "kubectl"
        shim.parent.mkdir()
        program_line = shlex.join([sys.executable, str(Path(__file__).with_name("kubectl.py"))])
        shim.write_text(f'#!/bin/sh\nexec {program_line} {state} "$@"\n')
        shim.chmod(0o755)
        begin, said = time.monotonic(), tmp_path / "said"
        with said.open("w") as output:  # a pipe would be open for as long as the port is forwarded
            process = subprocess.Popen(
                ["sh", "-eu", "-c", text], cwd=CHECKOUT, stdout=output, stderr=output,
                start_new_session=True,
                env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"},
            )  # fmt: skip
        try:
            process.wait(300)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
        shown = said.read_text()
        print(f"quickstart: {time.monotonic() - begin:.0f} s")
        assert process.returncode == 0, shown
        told = ["200 OK", '"id": "p-0001"', "403 Forbidden", '{"error":"forbidden"}',
                "physician on", "the care team", "intact: nothing changed"]  # fmt: skip
        places = [shown.find(text) for text in told]
        assert -1 not in places, shown
        assert places == sorted(places), shown
