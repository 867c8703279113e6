"""A console over the log that is read, and the receiver that takes its looks."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from authz.demo.stack import Part
from authz.record.privacy import PrivacyKey

_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_POLICY = Path(__file__).parents[3] / "deploy" / "opa" / "console.rego"


@dataclass(frozen=True)
class There:
    url: str
    client: httpx.Client

    def get(self, path: str) -> None:
        """A page, whole."""
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code)


@contextmanager
def site(store: str, directory: Path, key: PrivacyKey) -> Iterator[There]:
    """Up, for a privacy officer."""
    (directory / "privacy.key").write_text(key.secret.hex())
    (directory / "privacy.key").chmod(0o600)
    receiver = _part(
        "receiver", directory, 19_610, {"AUTHZ_STORE": store}, "--origin", "bench/looks"
    )
    environment = {
        "AUTHZ_STORE": store,
        "AUTHZ_EXT_AUTHZ__RECEIVER": receiver.address,
        "AUTHZ_PRIVACY__KEY": str(directory / "privacy.key"),
        "AUTHZ_CONSOLE__POLICY": str(_POLICY),
        "AUTHZ_CONSOLE__EVERYONE": "privacy.officer",
        "AUTHZ_CONSOLE__EVERYONE_ROLES": '["privacy-officer"]',
    }
    console = _part("console", directory, 19_611, environment)
    started = []
    try:
        for part in (receiver, console):
            part.start()
            started.append(part)
            part.wait_until_up()
        url = f"http://{console.address}"
        with httpx.Client(base_url=url, timeout=120) as client:
            yield There(url, client)
    finally:
        for part in reversed(started):
            part.stop()


def _part(name: str, directory: Path, port: int, environment: dict[str, str], *more: str) -> Part:
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "authz", "serve", name, "--listen", address, *more]
    environment = environment | {"AUTHZ_DATA_DIR": str(directory / name)}
    return Part(name, command, directory / f"{name}.log", environment, address)


def first_paints(url: str, times: int) -> list[float]:
    """Milliseconds from the address to something seen, each in a new browser's tab."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        return []
    options = ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(option)
    browser = Chrome(options, Service(driver))
    found = []
    try:
        for _ in range(times):
            browser.get("about:blank")
            browser.get(url)
            painted = WebDriverWait(browser, 30).until(lambda b: b.execute_script(_PAINT))
            found.append(float(painted))
    finally:
        browser.quit()
    return found
