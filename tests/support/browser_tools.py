"""What the checks of the page need beside a browser: servers to look at, streams of our own, and measures of a page."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from playwright.sync_api import Browser, Page, expect

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
ANSWER = """A **penstock** is a pipe that carries water to a turbine. It has three parts:

1. an intake with a *gate*,
2. the pipe itself, often of steel,
   - with expansion joints
   - and a surge tank
3. the `nozzle` at the end.

```python
def power(flow: float, head: float) -> float:
    return 9.81 * flow * head  # <b>kW</b>
```

Friction takes some of the head, so <script>document.title = "broken"</script> wide pipes pay off."""
REASONING = "Somebody asks for a pipe. A short list will do."

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((one, i) => (one * a) / 255 + below[i] * (1 - a / 255));
  const behind = (node) => {
    if (!node) return channels(getComputedStyle(document.documentElement).getPropertyValue("--page")).slice(0, 3);
    return over(channels(getComputedStyle(node).backgroundColor), behind(node.parentElement));
  };
  const light = (rgb) => {
    const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const written = own || node.matches("input:not([type=checkbox]), textarea");
    if (!written || !node.checkVisibility() || node.closest(".hidden, .still, .skip")) continue;
    const ground = behind(node);
    const lights = [light(over(channels(getComputedStyle(node).color), ground)), light(ground)];
    const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (ratio < 4.5) low.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return low;
}"""
"""Texts whose contrast with what is behind them is below 4.5, as a list of words."""

NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, summary, [role=group], [role=region]")]
  .filter((node) => !(node.ariaLabel || node.labels?.length || node.textContent.trim()))
  .map((node) => node.outerHTML.slice(0, 80))"""
"""Controls without a name."""


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`penstock serve` in a process of its own: its address, before the model is open, and the process."""
    command = [sys.executable, "-m", "pipeline", "serve", *options, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, text=True) as process:
        try:
            while not (found := re.search(r"listening on (\S+)", os.pread(log.fileno(), 4096, 0).decode())):
                if process.poll() is not None:
                    raise RuntimeError("the server has ended")
                time.sleep(0.05)
            yield found[1], process
        finally:
            process.kill()


class Look:
    """One page in a browser of its own storage; what its console says is kept."""

    def __init__(self, browser: Browser, address: str, size: dict[str, int] = DESKTOP, **settings: Any) -> None:
        self.context = browser.new_context(viewport=size, **settings)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def ready(self) -> Page:
        expect(self.page.locator("#state")).to_have_text("ready", timeout=30_000)
        return self.page

    def send(self, text: str) -> None:
        self.page.locator("#prompt").press_sequentially(text)
        self.page.keyboard.press("Enter")

    def answers(self, body: str, **answer: Any) -> None:
        """Have the next chat answered with this, and by no server."""
        answer = {"content_type": "text/event-stream", "body": body, **answer}
        self.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer), times=1)

    def answered(self) -> None:
        expect(self.page.locator("#send")).to_be_visible(timeout=60_000)
        expect(self.page.locator("article.assistant .foot button").last).to_be_visible()


@contextlib.contextmanager
def looking(browser: Browser, address: str, size: dict[str, int] = DESKTOP, **settings: Any) -> Iterator[Look]:
    look = Look(browser, address, size, **settings)
    try:
        yield look
    finally:
        look.context.close()


def work_behind(address: str) -> None:
    """Let three others ask, for as long as pictures take."""
    body = '{"prompt": "import os", "max_tokens": 1000, "ignore_eos": true, "stream": true, "model": "bundled"}'
    for _ in range(3):
        subprocess.Popen(
            ["curl", "-sN", "-m", "25", f"{address}/v1/completions", "-d", body], stdout=subprocess.DEVNULL
        )


def frames(*documents: Any) -> str:
    """The body of an answer that streams these."""
    return "".join(f"data: {json.dumps(one)}\n\n" for one in documents) + "data: [DONE]\n\n"


def answer_frames() -> str:
    """An answer with reasoning, Markdown, what looks like HTML, log-probabilities and a usage."""
    pieces = re.findall(r"\s*\S+|\s+$", ANSWER)
    begins, ends = (_chunk({"content": ""}, _choice(mark, 0)) for mark in ("<think>", "</think>"))
    thoughts = [_chunk({"reasoning_content": f"{word} "}, _choice(f"{word} ", 0)) for word in REASONING.split()]
    words = [_chunk({"content": piece}, _choice(piece, index)) for index, piece in enumerate(pieces)]
    usage = {"prompt_tokens": 1024, "completion_tokens": len(pieces), "prompt_tokens_details": {"cached_tokens": 960}}
    return frames(begins, *thoughts, ends, *words, _chunk({}, finish="stop"), {"choices": [], "usage": usage})


def _chunk(delta: dict[str, str], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}], "usage": None}


def _choice(piece: str, index: int) -> dict[str, Any]:
    own = -0.05 if index % 3 else -0.7 - index % 5 / 4
    likely: Sequence[tuple[str, float]] = ((piece, own), (" water", -1.5), (" the", -2.5), ("\n", -3.5), (" of", -4.5))
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in likely]
    return {"content": [{**top[0], "top_logprobs": top}]}
