"""A headless Chromium that may open one page, and nothing else: fixtures, which conftest.py takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import browser as browsers
import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program = browsers.find()
    if program is None:
        pytest.fail("no browser to open pages with: python tests/browser.py gets one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=browsers.ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium) -> Callable:
    """A context with the page of a file, or of a server of this machine, which it may ask further questions.

    It fails on any other request, and on what the console says.
    """

    @contextmanager
    def open_page(where: Path | str, width: int = 1400, scheme: str = "light") -> Iterator[Page]:
        served, address = isinstance(where, str), where if isinstance(where, str) else where.as_uri()
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=not served
        )
        trouble = []

        def ours(url: str) -> bool:
            return url.startswith(address) if served else url == address

        def guard(route) -> None:
            if ours(route.request.url):
                route.continue_()
            else:
                trouble.append(f"request: {route.request.url}")
                route.abort()

        context.route("**", guard)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        allowed = ("file:", "data:", *([address] if served else []))
        page.on("request", lambda request: request.url.startswith(allowed) or trouble.append(request.url))
        page.goto(address)
        yield page
        context.close()
        assert trouble == []

    return open_page
