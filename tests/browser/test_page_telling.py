"""The panel "Telling others" in a real browser: what could not be told, and every button of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from doors import running
from eyes import LOOKS, Eyes
from playwright.sync_api import Browser, expect
from receivers import SECRET, Receiver
from roots import Root
from test_notifications import Post, post  # noqa: F401
from test_page import barriers


class Told:
    """A service with a receiver that is down, and a person who is to be notified."""

    def __init__(self, root: Root, url: str, receiver: Receiver) -> None:
        self.root = root
        self.url = url
        self.receiver = receiver
        self.up = False


@pytest.fixture
def told(tmp_path: Path, post: Post) -> Iterator[Told]:  # noqa: F811
    with Receiver(lambda path: 204 if here.up else 503) as receiver:
        root = Root(
            tmp_path / "root",
            webhooks=[{"url": receiver.url, "secret": SECRET, "events": ["job.completed"]}],
            notify=[f"json://127.0.0.1:{post.port}/x"],
        )
        with running(root.folder) as service:
            here = Told(root, service.url, receiver)
            root.watch(pace=1e-6)
            yield here
        root.close()


@pytest.mark.parametrize("look", ["light", "phone"])
def test_what_was_given_up_is_shown_and_sent_again(
    browser: Browser,
    told: Told,
    post: Post,  # noqa: F811
    look: str,
) -> None:
    eyes = Eyes(browser, told.url, **LOOKS[look])
    eyes.expected = ["404"]  # a browser asks for an icon where what it shows is JSON
    page = eyes.open("/system")
    panel = page.locator("#telling")
    expect(panel).to_contain_text("2 receivers")
    told.root.drop("a.json", '{"prompt": "a steps=1"}')
    expect(panel).to_contain_text("1 event could not be told to " + told.receiver.url)
    expect(panel).to_contain_text("It answered 503.")
    assert barriers(page) == []
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]

    told.up = True
    panel.get_by_role("button", name="Send again").click()
    expect(page.locator(".toast").last).to_contain_text("It is sent again.")
    until(lambda: told.receiver.heard, 30, "it arrives")
    assert told.receiver.heard[0].type == "job.completed" and told.receiver.refused == []
    expect(panel).to_contain_text("2 receivers")
    expect(panel.get_by_role("button", name="Send again")).to_have_count(0)

    panel.get_by_role("button", name="Send a test notification").click()
    expect(page.locator(".toast").last).to_contain_text("A test is on its way.")
    until(lambda: "A test" in [each["title"] for each in post], 30, "the test arrives")

    panel.get_by_role("link", name="Deliveries").click()
    expect(page.locator("body")).to_contain_text('"delivered"')
    eyes.close()
