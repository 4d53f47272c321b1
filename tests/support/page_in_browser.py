"""Looks at the page in a headless Chromium, with real servers behind it, and takes pictures.

    pip install playwright
    PYTHONPATH=.:tests python tests/support/page_in_browser.py --chromium /usr/bin/chromium --pictures FOLDER

Prints a line for each check, and ends with status 1 where one fails.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import Browser, expect, sync_playwright
from support.browser_tools import (
    ANSWER,
    CONTRASTS,
    DESKTOP,
    NAMELESS,
    PHONE,
    answer_frames,
    frames,
    looking,
    served,
    work_behind,
)

MODEL = ("bundled", "--device", "cpu-copy", "--no-residency", "--kv-tokens", "4096")
QUESTION = "def fibonacci(n):"
Server = tuple[str, "subprocess.Popen[str]"]


def streams_while_the_line_moves(browser: Browser, server: Server) -> None:
    """Typed and sent by keyboard; text grows in steps, the feed says what binds, and comes to rest again."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        expect(page.locator("#bound")).to_have_text("At rest: no request to compute.", timeout=5_000)
        page.fill("[name=max_tokens]", "300")
        page.locator("#prompt").press_sequentially("import os")
        page.keyboard.press("Shift+Enter")
        assert page.input_value("#prompt") == "import os\n"
        page.keyboard.press("Enter")
        lengths, sentences, bars = set(), set(), set()
        while page.locator("#stop").is_visible():
            lengths.add(len(page.locator(".assistant > .text").last.inner_text()))
            sentences.add(page.locator("#bound").inner_text())
            bars.add(page.locator("#actors .bar").first.evaluate("bar => bar.style.width"))
        assert len(lengths) > 10, lengths
        assert any(sentence.startswith("Bound by") for sentence in sentences), sentences
        assert len(bars) > 2, bars
        expect(page.locator(".figures").last).to_contain_text("300 tokens")
        expect(page.locator("#bound")).to_have_text("At rest: no request to compute.", timeout=5_000)
        assert not look.said, look.said
        assert all(url.startswith(server[0]) for url in look.asked), look.asked


def stops_at_a_click_and_at_escape(browser: Browser, server: Server) -> None:
    """Each frees the request, and what had come stays."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        page.fill("[name=max_tokens]", "900")
        for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
            look.send(QUESTION)
            expect(page.locator(".assistant .token").nth(20)).to_be_attached()
            stop()
            expect(page.locator("#send:focus, #prompt:focus")).to_be_visible()
            expect(page.locator(".note").last).to_have_text("Stopped.")
            deadline = time.monotonic() + 1
            while "num_requests_running 0" not in httpx.get(f"{server[0]}/metrics").text:
                assert time.monotonic() < deadline
            assert len(page.locator(".assistant > .text").last.inner_text()) > 20
            page.click("#new")


def shows_log_probabilities(browser: Browser, server: Server) -> None:
    """On hover, and with arrow keys after one stop of the Tab key; shading is a switch; of continued texts, too."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        page.fill("[name=max_tokens]", "24")
        look.send(QUESTION)
        look.answered()
        page.hover(".assistant .token >> nth=3")
        expect(page.locator("#token-tip")).to_contain_text("log-probability")
        expect(page.locator(".alternatives li")).to_have_count(5)
        page.mouse.move(0, 0)
        page.locator(".assistant > .text").last.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#token-tip")).to_be_visible()
        assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 2
        page.focus("[name=shading]")
        page.keyboard.press("Space")
        colours = "all => new Set(all.map((one) => getComputedStyle(one).backgroundColor)).size"
        shades = page.locator(".token").evaluate_all(colours)
        assert shades > 5, shades
        page.check("[name=plain]")
        page.click("#new")
        look.send("import")
        look.answered()
        page.hover(".assistant > .text .token >> nth=3")
        expect(page.locator(".alternatives li")).to_have_count(5)


def keeps_conversations(browser: Browser, server: Server) -> None:
    """Several, over a reload, with their system prompts, those of other tabs too; deleted ones are gone."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        page.fill("[name=max_tokens]", "8")
        for text, system in (("first", "one"), ("second", "two")):
            page.click("#new")
            page.fill("[name=system]", system)
            look.send(text)
            look.answered()
        page.reload()
        look.ready()
        expect(page.locator("button.open")).to_have_text(["second", "first"])
        page.click("button.open >> nth=1")
        assert page.input_value("[name=system]") == "one"
        before = page.locator(".assistant > .text").inner_text()
        page.focus("button:text('Regenerate')")
        page.keyboard.press("Enter")
        look.answered()
        assert page.locator(".assistant > .text").inner_text() == before  # greedy
        other = look.context.new_page()
        other.goto(server[0])
        expect(other.locator("#state")).to_have_text("ready")
        other.click("#new")
        other.fill("#prompt", "third")
        other.press("#prompt", "Enter")
        expect(page.locator("button.open")).to_have_text(["first", "third", "second"])
        other.close()
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#clear")
        expect(page.locator("button.open")).to_have_text(["New conversation"])
        assert "first" not in page.evaluate("JSON.stringify(localStorage)")


def shows_texts_as_texts(browser: Browser, server: Server) -> None:
    """Markdown becomes elements, HTML does not; reasoning is folded; the usage is told; copied is what was said."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        look.answers(answer_frames())
        look.send("<img src=x onerror=alert(1)> What is a penstock?")
        look.answered()
        expect(page.locator(".user > .text")).to_contain_text("<img src=x")
        expect(page.locator(".assistant > .text").last).to_contain_text("<script>document.title")
        assert page.locator(".assistant ol > li").count() == 3
        assert page.locator(".assistant ul > li").count() == 2
        assert page.locator(".assistant pre").inner_text().endswith("# <b>kW</b>")
        assert page.locator("article :is(img, script, b)").count() == 0
        thoughts = page.locator(".assistant .reasoning .text")
        expect(thoughts).to_be_hidden()
        page.click(".assistant .reasoning summary")
        expect(thoughts).to_be_visible()
        for passage, token in ((".assistant .reasoning", "Somebody␣"), (".assistant >", "A")):
            page.hover(f"{passage} .text .token >> nth=0")
            expect(page.locator("#token-tip b")).to_have_text([token])
        expect(page.locator(".figures").last).to_contain_text("prompt 1,024, of these 960 cached")
        look.context.grant_permissions(["clipboard-read", "clipboard-write"])
        for way in ("new", "old"):
            if way == "old":  # as without TLS
                page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
            page.click("button:text('Copy')")
            expect(page.locator("button:text('Copied')")).to_be_visible()
            page.fill("#prompt", "")
            page.keyboard.press("Control+V")
            assert page.input_value("#prompt") == ANSWER
            page.locator(".foot button").first.evaluate("button => (button.textContent = 'Copy')")
        assert not look.said, look.said


def says_what_goes_wrong(browser: Browser, server: Server) -> None:
    """In words, with what to do; a full queue is asked again, and other errors when one wants."""
    with looking(browser, server[0]) as look:
        page = look.ready()
        page.fill("[name=max_tokens]", "4")
        error = {"error": {"message": "32 requests wait already", "type": "rate_limit_error"}}
        look.answers(json.dumps(error), status=429, headers={"retry-after": "2"})
        look.send("hello")
        expect(page.locator(".note").last).to_contain_text("Too many requests wait. Asking again in")
        drawn = page.locator(".assistant > .text").evaluate("text => getComputedStyle(text, '::after').content")
        assert "Waiting for the first token" in drawn, drawn
        look.answered()
        expect(page.locator(".problem").last).to_be_hidden()
        broken = frames({"choices": [{"delta": {"content": "Half"}}]}, {"error": {"message": "the disk_reader failed"}})
        look.answers(broken)
        look.send("again")
        expect(page.locator(".problem").last).to_contain_text("What has come stays. Try again.")
        expect(page.locator(".assistant > .text").last).to_have_text("Half")
        page.click("button:text('Try again')")
        look.answered()
        expect(page.locator(".problem").last).to_be_hidden()
        page.fill("[name=temperature]", "9")
        look.send("hot")
        assert page.input_value("#prompt") == "hot"  # not sent: the field says what is wrong


def needs_a_key_and_tells_of_loading(browser: Browser) -> None:
    """A message that is sent too early is answered; the key is kept by the tab alone; a server that dies is missed."""
    with served(*MODEL, "--api-key", "secret") as (address, process), looking(browser, address) as look:
        page = look.page
        expect(page.locator("#state")).to_have_text("needs a key")
        page.fill("[name=key]", "secret")
        page.press("[name=key]", "Enter")
        expect(page.locator("#bound")).to_contain_text("The model is loading, for")
        page.fill("[name=max_tokens]", "900")
        look.send(QUESTION)
        expect(page.locator(".note").last).to_contain_text("The model is still loading. Asking again in")
        expect(page.locator(".assistant .token").nth(20)).to_be_attached(timeout=30_000)
        stored = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert "secret" not in stored[0], stored
        assert "secret" in stored[1], stored
        process.kill()
        expect(page.locator(".problem").last).to_contain_text("connection to the server was lost.")
        expect(page.locator("#state")).to_have_text("no connection")


def can_be_read_and_reached(browser: Browser, server: Server, pictures: Path) -> None:
    """Contrast of at least 4.5, a name for every control, nothing beside the screen; with pictures.

    In that of the desktop the answer is the bundled model's; in the others it is ours, to show what text can hold.
    """
    for name, size, scheme in (("desktop", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light")):
        with looking(browser, server[0], size, color_scheme=scheme, reduced_motion="reduce") as look:
            page = look.ready()
            if name == "desktop":
                for field, value in {"temperature": "0.6", "seed": "3", "max_tokens": "110"}.items():
                    page.fill(f"[name={field}]", value)
            else:
                look.answers(answer_frames())
            look.send("def read_lines(path):" if name == "desktop" else "What is a penstock?")
            look.answered()
            work_behind(server[0])
            expect(page.locator("#bound")).to_contain_text("Bound by", timeout=5_000)
            time.sleep(20 if name == "desktop" else 5)  # for the small lines of the rates
            if name != "phone":
                page.check("[name=shading]")
            if name == "desktop":
                page.hover(".assistant > .text .token >> nth=12")
            page.screenshot(path=pictures / f"{name}.png")
            if name == "phone":
                page.click("#live summary")
                page.screenshot(path=pictures / "phone_line.png")
            low, nameless = page.evaluate(CONTRASTS), page.evaluate(NAMELESS)
            wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert (low, nameless, wide) == ([], [], False), (name, low, nameless, wide)
            moving = page.evaluate("document.getAnimations().length")
            assert moving == 0, moving


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", default=None)
    parser.add_argument("--pictures", type=Path, default=Path())
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, served(*MODEL) as server:
        browser = playwright.chromium.launch(executable_path=options.chromium)
        checks: dict[str, Callable[[], None]] = {
            one.__name__.replace("_", " "): lambda one=one: one(browser, server)  # type: ignore[misc]
            for one in (
                streams_while_the_line_moves,
                stops_at_a_click_and_at_escape,
                shows_log_probabilities,
                keeps_conversations,
                shows_texts_as_texts,
                says_what_goes_wrong,
            )
        }
        checks["needs a key and tells of loading"] = lambda: needs_a_key_and_tells_of_loading(browser)
        checks["can be read and reached"] = lambda: can_be_read_and_reached(browser, server, options.pictures)
        failed = 0
        for name, check in checks.items():
            started = time.monotonic()
            try:
                check()
                print(f"PASS {name}, {time.monotonic() - started:.1f} s", flush=True)
            except Exception as error:
                failed += 1
                print(f"FAIL {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
