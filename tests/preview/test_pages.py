"""The waiting page in a browser: it wakes the project, shows how it goes, and makes way for the app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, async_playwright, expect
from sqlalchemy import text

from tests.preview.world import House

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def browser_page() -> AsyncIterator[tuple[Page, list[str]]]:
    """A page of a fresh browser, and what its console complains about besides answers of 4xx and 5xx."""
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = await browser.new_page()
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        yield page, complaints
        await browser.close()


async def test_the_page_follows_a_start_and_makes_way_for_the_app(previews: House) -> None:
    project = await previews.new_project()
    await _write(previews, "UPDATE dev_servers SET state = 'starting'")
    async with browser_page() as (page, complaints):
        await page.goto(f"http://{previews.host(project)}/?token={await previews.token(project)}")
        await expect(page.locator("h1")).to_have_text("Waking up")
        assert page.url == f"http://{previews.host(project)}/"
        await _write(
            previews,
            "UPDATE dev_servers SET state = 'failed', since = now(), reason = 'It crashed.', log_tail = '<i>boom</i>'",
        )
        await expect(page.locator("#log")).to_have_text("<i>boom</i>")
        await expect(page.get_by_role("button")).to_have_text("Start again")
        async with previews.app_of(project):
            await expect(page.locator("body")).to_have_text('{"ok":true}')
        assert complaints == []


async def test_a_stranger_is_told_where_to_sign_in(previews: House) -> None:
    project = await previews.new_project()
    async with browser_page() as (page, complaints):
        await page.goto(f"http://{previews.host(project)}/")
        await expect(page.locator("h1")).to_have_text("This preview is private")
        assert await page.get_by_role("link").get_attribute("href") == "http://localhost:8000"
        assert complaints == []


async def _write(running: House, statement: str) -> None:
    async with running.database.transaction() as session:
        await session.execute(text(statement))
