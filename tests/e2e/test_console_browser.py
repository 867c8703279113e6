"""The console in a real browser: by keyboard, for screen readers, light and dark."""

import contextlib
import os
import shutil
import time

import pytest
from axe_core_python.selenium import Axe
from console_site import ORIGIN, console, finding, site, token_in
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

__all__ = ["site"]  # the fixture


@pytest.fixture(scope="module")
def officer(site):
    with console(site, everyone="o.ash", everyone_roles=["privacy-officer"]) as client:
        yield str(client.base_url)


@contextlib.contextmanager
def browser(*options):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        if os.environ.get("CI"):
            pytest.fail("chromium and chromium-driver are not installed")
        pytest.skip("chromium and chromium-driver are not installed")
    chrome = ChromeOptions()
    chrome.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *options):
        chrome.add_argument(option)
    chrome.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = Chrome(chrome, Service(driver))
    try:
        found.set_window_size(1280, 900)
        yield found
    finally:
        found.quit()


@pytest.fixture(scope="module")
def light():
    with browser() as found:
        yield found


def pages(site):
    patient = token_in(site, "p-1")
    return [
        "/", "/search", "/search?subject=m.moss", "/search?subject=nobody", "/person/dr.alder",
        f"/patient/{patient}", "/findings", f"/finding/{finding(site)}", f"/record/{ORIGIN}@3",
        "/reports", f"/reports?patient={patient}", "/verify", "/policy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "dark",
    [pytest.param(False, id="light"), pytest.param(True, id="dark", marks=pytest.mark.thorough)],
)
def test_for_everybody(site, officer, dark):
    """No page has anything that axe finds wrong, and none is stopped by its own security policy."""
    options = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    with browser(*options) as found:
        wrong = {}
        for path in pages(site):
            found.get(officer + path)
            violations = Axe().run(found)["violations"]
            wrong |= {(path, one["id"]): one["nodes"][0]["html"] for one in violations}
        assert wrong == {}
        assert [one for one in found.get_log("browser") if one["level"] == "SEVERE"] == []


def test_by_keyboard(officer, light):
    """From the address to a finding's form without a pointer; what has the focus is seen."""
    light.get(officer)
    body = light.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert light.switch_to.active_element.text == "Skip to the page"
    for _ in range(12):
        light.switch_to.active_element.send_keys(Keys.TAB)
        if light.switch_to.active_element.text == "Findings":
            break
    else:
        pytest.fail("the navigation is not reached by Tab")
    outline = light.switch_to.active_element.value_of_css_property("outline-style")
    assert outline == "solid"
    light.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(light, 10).until(lambda one: one.current_url.endswith("/findings"))
    assert "finding" in light.find_element(By.TAG_NAME, "h1").text


def asked(browser):
    """How often the page has asked for news."""
    entries = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('/live'))"
    return browser.execute_script(f"return {entries}.length")


def test_the_overview_is_live(site, officer, light):
    """What is new is there without a reload; not while the page is hidden or paused, and no more
    once the console says no."""
    faster = "const real = setTimeout; window.setTimeout = (what, after) => real(what, after / 20);"
    script = light.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": faster}
    )["identifier"]  # fmt: skip
    light.get(officer)
    light.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
    light.execute_script("window.loaded = 'once'")
    site.tell([{"kind": "decision", "time": 1, "decision_id": "now", "subject": "in.the.act"}])
    wait = WebDriverWait(light, 20)
    newest = '[data-live="newest"]'
    wait.until(lambda one: "in.the.act" in one.find_element(By.CSS_SELECTOR, newest).text)
    assert light.execute_script("return window.loaded") == "once"
    polite = light.find_elements(By.CSS_SELECTOR, "[aria-live]")
    assert [one.tag_name for one in polite] == ["h1"]

    # Headless, a tab in the background is not always hidden: it is told so.
    hide(light, hidden=True)
    assert_quiet(light)
    seen = asked(light)
    hide(light, hidden=False)
    wait.until(lambda one: asked(one) > seen)

    button = light.find_element(By.CSS_SELECTOR, "#live button")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert_quiet(light)
    light.execute_script("document.getElementById('live').dataset.mark = 'of somebody else'")
    button.click()
    wait.until(lambda one: "Not live any more" in one.find_element(By.ID, "live").text)
    assert_quiet(light)


def hide(browser, *, hidden):
    browser.execute_script(
        "const value = arguments[0];"
        " Object.defineProperty(document, 'hidden', {configurable: true, get: () => value});"
        " document.dispatchEvent(new Event('visibilitychange'));", hidden,
    )  # fmt: skip


def assert_quiet(browser):
    """It does not ask, in the time of two questions."""
    time.sleep(0.5)  # what was under way
    seen = asked(browser)
    time.sleep(0.6)
    assert asked(browser) == seen


def test_a_verification_is_watched(officer, light):
    """Its page comes to the verdict by itself."""
    light.get(f"{officer}/verify")
    light.find_element(By.XPATH, "//button[contains(., 'Verify everything')]").click()
    WebDriverWait(light, 30).until(
        lambda one: one.find_element(By.TAG_NAME, "h1").text.startswith("Intact")
    )
