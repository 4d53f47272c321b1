"""Two replicas answer as one process does; clients leave, a replica dies, and a signal ends them in order."""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from support.cases import EVERYTHING
from support.servers import frames, serving, text_of

pytest.importorskip("ray.serve")
from support.replica_servers import RUNNING, Replicas, client, replicas

BODY = {"model": "bundled", "prompt": "import os\n", "max_tokens": 20}
LONG = {**BODY, "max_tokens": 400}


@pytest.fixture(scope="module")
def two() -> Iterator[Replicas]:
    with replicas(2) as it:
        yield it


async def figures(asking: httpx.AsyncClient, name: str) -> dict[str, float]:
    """A figure of each replica."""
    told = (await asking.get("/metrics")).text
    found = re.findall(rf'^penstock:{name}{{.*?replica="(\w+)"}} (\S+)$', told, re.MULTILINE)
    return {replica: float(value) for replica, value in found}


async def test_answers_are_those_of_one_process(two: Replicas) -> None:
    asked = [{**BODY, "prompt": f"def function_{number}(", "temperature": 0.8, "seed": number} for number in range(6)]
    async with serving(names=("bundled",)) as one, client(two) as asking:
        alone = [(await one.client.post("/v1/completions", json=body)).json()["choices"] for body in asked]
        answers = await asyncio.gather(*(asking.post("/v1/completions", json=body) for body in asked))
        assert [answer.json()["choices"] for answer in answers] == alone
        assert {answer.headers["x-replica"] for answer in answers} <= (await figures(asking, "passes_total")).keys()
        for path, body, status in (("/v1/nowhere", b"{}", 404), ("/v1/completions", b"{", 400)):
            refused = await asking.post(path, content=body)
            assert (refused.status_code, refused.content) == (
                status,
                (await one.client.post(path, content=body)).content,
            )


async def test_the_turns_of_a_chat_go_where_it_began(two: Replicas) -> None:
    chosen: Counter[str] = Counter()
    async with client(two) as asking:
        for number in range(6):
            messages: list[dict[str, str]] = []
            names = set()
            for turn in range(2):
                messages.append({"role": "user", "content": f"What does function {number} do in turn {turn}?"})
                body = {"messages": messages, "max_tokens": 8}
                answer = await asking.post("/v1/chat/completions", json=body)
                names.add(answer.headers["x-replica"])
                cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached >= 16 * turn, "another replica would have computed it anew"
                messages.append(answer.json()["choices"][0]["message"])
            assert len(names) == 1
            chosen.update(names)
        assert chosen.keys() <= (await figures(asking, "passes_total")).keys()


async def test_frames_come_one_by_one_and_a_client_that_leaves_frees_its_request(two: Replicas) -> None:
    async with client(two) as asking:
        before = await figures(asking, "generation_tokens_total")
        async with asking.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
            name, parts = answer.headers["x-replica"], answer.aiter_raw()
            for _ in range(5):
                assert (await anext(parts)).count(b"data: ") < 20, "frames were kept back"
        async with asyncio.timeout(10):
            while any([(await figures(asking, one))[name] for one in ("num_requests_running", "kv_cache_usage_perc")]):
                await asyncio.sleep(0.02)
        after = await figures(asking, "generation_tokens_total")
        assert 5 <= after[name] - before[name] < 400, "it ran to its end"


@pytest.mark.skipif(not EVERYTHING, reason="a replica takes seconds to come back")
async def test_a_replica_that_dies_ends_its_requests_with_one_error(two: Replicas) -> None:
    async with client(two) as asking:

        async def ask(number: int) -> str:
            body = {**LONG, "prompt": f"def function_{number}(", "stream": number % 2 == 0}
            answer = await asking.post("/v1/completions", json=body)
            assert answer.status_code in (200, 503), answer.text
            documents = [answer.json()] if answer.status_code == 503 or not body["stream"] else frames(answer.text)
            errors = [one["error"]["message"] for one in documents if "error" in one]
            assert errors in ([], ["the replica that ran this request has ended; ask again"])
            return "error" if errors else "whole"

        said = len(two.log.read_text())
        running = [asyncio.create_task(ask(number)) for number in range(10)]
        async with asyncio.timeout(30):
            while list((await figures(asking, "num_requests_running")).values()).count(0.0):
                await asyncio.sleep(0.02)
        os.kill(two.processes()[0], signal.SIGKILL)
        async with asyncio.timeout(300):
            assert set(await asyncio.gather(*running)) == {"whole", "error"}
        assert (await asking.post("/v1/completions", json=BODY)).status_code == 200
    await asyncio.to_thread(two.await_line, RUNNING.format(2), said)


@pytest.mark.skipif(not EVERYTHING, reason="a replica takes seconds to come back")
def test_a_signal_lets_running_requests_finish(two: Replicas) -> None:
    """On no event loop: a test runs on each, and this one ends the command that all share."""
    body = {**LONG, "max_tokens": 100, "stream": True}
    url = f"{two.url}/v1/completions"
    with httpx.Client(timeout=60, trust_env=False) as asking, asking.stream("POST", url, json=body) as answer:
        parts = answer.iter_text()
        text = next(parts)
        two.command.send_signal(signal.SIGTERM)
        text += "".join(parts)
    assert len(text_of(frames(text))) > 100
    assert two.command.wait(60) == 0
