"""A server answers, says how its model is, and refuses in words that OpenAI's clients read."""

import json
import subprocess
import sys

from support.servers import serving

PROMPT = "import os\n"


async def test_answers_whole_and_streamed_are_those_of_the_model() -> None:
    async with serving(names=("small",)) as (_, served, client):
        output = await served.model.generate(PROMPT, max_new_tokens=4)
        body = {"model": "small", "prompt": PROMPT, "max_tokens": 4}
        whole = await client.post("/v1/completions", json=body)
        streamed = await client.post("/v1/completions", json={**body, "stream": True})
        assert (whole.status_code, streamed.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n")]
        assert lines[-2:] == ["[DONE]", ""]
        frames = [json.loads(line) for line in lines[:-2]]
        assert "".join(frame["choices"][0]["text"] for frame in frames) == output.text
        assert (await client.get("/health")).json() == {"status": "ready"}


def test_the_application_needs_no_torch() -> None:
    code = "import pipeline.server.process, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
