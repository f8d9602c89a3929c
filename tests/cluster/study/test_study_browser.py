"""Rating session in a real browser: keyboard only on a desktop, touch on a phone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser
from study_folder import draw_folders, make_words, serving

from cluster.study.config import StudyConfig
from cluster.study.rating_server import RatingServer, make_token
from cluster.study.study_store import read_study
from cluster.study.vote_store import VoteStore
from jobs import cli, study
from vgan.study.trials import rater_session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH"),
]

CHOICES = ("left", "right", "right", "left")
MAY_CHOOSE = "document.querySelector('#left')?.ariaDisabled === 'false'"


def seen(element: str) -> str:
    """Return the expression that is true if an element exists and is not hidden."""
    return f"document.querySelector('#{element}')?.hidden === false"


async def by_key(page: Page, element: str) -> None:
    """Choose with the arrow keys; reach buttons with Tab and press them with Enter."""
    if element in ("left", "right"):
        await page.press({"left": "ArrowLeft", "right": "ArrowRight"}[element])
        return
    for _ in range(10):
        if await page.value("document.activeElement.id") == element:
            break
        await page.press("Tab")
    assert await page.value("document.activeElement.id") == element
    await page.press("Enter")


async def by_finger(page: Page, element: str) -> None:
    await page.tap(f"#{element}")


@pytest.mark.parametrize("way", ["keys", "fingers"])
def test_a_rater_completes_a_session_in_a_browser(tmp_path: Path, way: str) -> None:
    draw_folders(tmp_path)
    assert cli.run(study.main, StudyConfig, study.ABOUT, make_words(tmp_path)) == 0
    stored = read_study(f"{tmp_path}/study")
    store = VoteStore(f"sqlite:///{tmp_path}/votes.db", stored.digest)
    server, act = RatingServer(stored, f"{tmp_path}/study", store), by_key if way == "keys" else by_finger
    trials = rater_session(stored.study, 5)
    chosen = {number: CHOICES[i % len(CHOICES)] == "left" for i, number in enumerate(trials)}

    async def rate() -> None:
        async with serving(server) as base, browser(tmp_path / "profile") as page:
            await page.screen(*((1280, 800) if way == "keys" else (390, 844)), phone=way == "fingers")
            await page.call("Page.navigate", url=f"{base}/#{make_token(5, store.secret)}")
            await page.wait_for(seen("intro"))
            await page.picture(tmp_path / f"{way}-intro.png")
            await act(page, "start")
            for _ in server.practice:
                await page.wait_for(MAY_CHOOSE)
                await act(page, "left")
                await page.wait_for(seen("next"))
                await page.picture(tmp_path / f"{way}-practice.png")
                await act(page, "next")
            await page.wait_for(seen("next"))
            await act(page, "next")
            for number, trial in enumerate(trials, 1):
                await page.wait_for(
                    f"{MAY_CHOOSE} && document.querySelector('#status').textContent.startsWith('{number} of')"
                )
                await page.picture(tmp_path / f"{way}-trial.png")
                wide = await page.value("document.documentElement.scrollWidth <= innerWidth")
                assert wide, "the page has to be scrolled sideways"
                await act(page, "left" if chosen[trial] else "right")
            await page.wait_for(seen("thanks"))
            await page.picture(tmp_path / f"{way}-thanks.png")
            await page.call("Page.reload")  # reopened by the same link: all trials are done
            await page.wait_for(seen("thanks"))

    asyncio.run(rate())
    votes = store.all()
    assert {int(t): bool(left) for t, left in zip(votes.trial, votes.left, strict=True)} == chosen
    assert set(votes.rater) == {"5"}
