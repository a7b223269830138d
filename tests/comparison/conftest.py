"""A headless Chromium that may open one file, and nothing else."""

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
        pytest.fail("no browser to open reports with: python tests/browser.py gets one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=browsers.ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium) -> Callable:
    """A context with the page of a file. It fails on any request but the file's, and on what the console says."""

    @contextmanager
    def open_page(path: Path, width: int = 1400, scheme: str = "light") -> Iterator[Page]:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        address, trouble = path.as_uri(), []

        def guard(route) -> None:
            if route.request.url == address:
                route.continue_()
            else:
                trouble.append(f"request: {route.request.url}")
                route.abort()

        context.route("**", guard)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
        page.goto(address)
        yield page
        context.close()
        assert trouble == []

    return open_page
