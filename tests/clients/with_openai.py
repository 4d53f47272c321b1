"""The official openai package against the server. Run by tests/clients/run.py."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
from checks import MESSAGES, MODEL, TOOL, URL, equal, run, true
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


class Person(BaseModel):
    """What a structured answer is parsed into."""

    name: str
    age: int


def chat(**more):
    """A whole answer, greedy unless `more` says otherwise."""
    return client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, "max_tokens": 12, **more})


def requests_now():
    """The number of requests that run or wait."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ("penstock:num_requests_running", "penstock:num_requests_waiting")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def soon_idle():
    """Raise AssertionError unless no request is left within two seconds."""
    for _ in range(40):
        if requests_now() == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"{requests_now()} requests are left")


def check_the_example_prints_the_stream_that_it_asks_for():
    example = Path(__file__).parents[2] / "examples" / "10_server_client.py"
    settings = {**os.environ, "OPENAI_BASE_URL": f"{URL}/v1"}
    ran = subprocess.run([sys.executable, str(example)], env=settings, capture_output=True, text=True, check=True)
    message = {"role": "user", "content": "def binary_search(items, wanted):"}
    equal(ran.stdout, f"{chat(messages=[message], max_tokens=48).choices[0].message.content}\n-- answered by {MODEL}\n")


def check_the_model_is_listed():
    equal([one.id for one in client.models.list()], [MODEL])
    equal(client.models.retrieve(MODEL).id, MODEL)


def check_a_chat_is_answered_whole():
    answer = chat()
    equal((answer.object, answer.model, answer.choices[0].message.role), ("chat.completion", MODEL, "assistant"))
    equal((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 12))
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 12)
    true(answer.choices[0].message.content)
    equal(chat(max_tokens=None, max_completion_tokens=12).choices[0].message.content, answer.choices[0].message.content)


def check_a_stream_has_the_same_text_a_role_first_and_usage_last():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    equal(chunks[0].choices[0].delta.role, "assistant")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    equal(text, chat().choices[0].message.content)
    equal((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], 12))
    equal({chunk.usage for chunk in chunks[:-1]}, {None})
    equal([chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason], ["length"])
    equal(len({chunk.id for chunk in chunks}), 1)


def check_samples_seeds_and_stops():
    same = [chat(seed=5, temperature=1, n=3) for _ in range(2)]
    equal(*([choice.message.content for choice in one.choices] for one in same))
    equal([choice.index for choice in same[0].choices], [0, 1, 2])
    true(len({choice.message.content for choice in same[0].choices}) > 1, "samples differ")
    whole = chat(max_tokens=40).choices[0].message.content
    stop = whole[10:14]
    stopped = chat(max_tokens=40, stop=stop)
    equal((stopped.choices[0].message.content, stopped.choices[0].finish_reason), (whole[: whole.index(stop)], "stop"))
    streamed = list(chat(n=2, seed=1, temperature=1, stream=True))
    equal({choice.index for chunk in streamed for choice in chunk.choices}, {0, 1})


def check_log_probabilities_of_a_chat():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    equal(len(content), 12)
    for token in content:
        true(token.logprob <= 0 and 3 <= len(token.top_logprobs) <= 4)
        equal(token.top_logprobs[0].logprob, max(one.logprob for one in token.top_logprobs))
        equal(bytes(token.bytes).decode(errors="replace"), token.token)
    equal(b"".join(bytes(token.bytes) for token in content).decode(), chat().choices[0].message.content)


def check_completions_with_echo_and_log_probabilities():
    ids = json.loads(_post("/tokenize", {"prompt": "import os"}))["tokens"]
    whole = client.completions.create(model=MODEL, prompt=ids, max_tokens=4, temperature=0, logprobs=2, echo=True)
    logprobs = whole.choices[0].logprobs
    equal(len(logprobs.tokens), len(ids) + 4)
    equal(logprobs.token_logprobs[0], None)
    true(all(value <= 0 for value in logprobs.token_logprobs[1:]))
    true(whole.choices[0].text.startswith("import os") or "import os" in whole.choices[0].text)
    plain = client.completions.create(model=MODEL, prompt=ids, max_tokens=4, temperature=0)
    true(whole.choices[0].text.endswith(plain.choices[0].text))


def check_several_prompts_in_one_request():
    prompts = ["import os", "class A", "def f("]
    together = client.completions.create(model=MODEL, prompt=prompts, max_tokens=5, temperature=0)
    alone = [client.completions.create(model=MODEL, prompt=one, max_tokens=5, temperature=0) for one in prompts]
    equal([one.index for one in together.choices], [0, 1, 2])
    equal([one.text for one in together.choices], [one.choices[0].text for one in alone])


def check_structured_answers_parse():
    answer = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, max_tokens=300, temperature=1, seed=3, response_format=Person
    )
    true(isinstance(answer.choices[0].message.parsed, Person))
    loose = chat(response_format={"type": "json_object"}, max_tokens=400, seed=2, temperature=0.7)
    if loose.choices[0].finish_reason == "stop":
        true(isinstance(json.loads(loose.choices[0].message.content), dict))


def check_tools_are_called_whole_and_streamed():
    forced = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "seed": 4, "temperature": 1}
    forced |= {"parallel_tool_calls": False}  # which this model would make until the length ends them
    answer = chat(**forced).choices[0]
    equal(answer.finish_reason, "tool_calls")
    call = answer.message.tool_calls[0]
    equal((call.type, call.function.name), ("function", "get_weather"))
    arguments = json.loads(call.function.arguments)
    equal(sorted(arguments), ["city", "days"])
    pieces = [chunk.choices[0].delta.tool_calls for chunk in chat(**forced, stream=True) if chunk.choices]
    pieces = [piece for some in pieces if some for piece in some if piece.index == 0]
    equal(pieces[0].function.name, "get_weather")
    equal(json.loads("".join(piece.function.arguments or "" for piece in pieces)), arguments)
    true(len(pieces) > 2, "arguments come in pieces")
    again = [*MESSAGES, answer.message.model_dump(exclude_none=True)]
    again.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    true(chat(messages=again, tools=[TOOL], max_tokens=3).usage.completion_tokens)


def check_errors_are_those_of_the_package():
    for kind, param, more in [
        (openai.BadRequestError, "temperature", {"temperature": -1}),
        (openai.BadRequestError, "messages", {"messages": []}),
        (openai.BadRequestError, None, {"max_tokens": 10_000_000}),
        (openai.NotFoundError, "model", {"model": "another"}),
    ]:
        try:
            chat(**more)
        except kind as error:
            true(error.body["message"])
            if param is not None:
                equal(error.body["param"], param)
        else:
            raise AssertionError(f"no error for {more}")


def check_a_stream_that_is_closed_frees_its_request():
    stream = chat(max_tokens=900, stream=True)
    next(iter(stream))
    true(requests_now() >= 1)
    stream.close()
    soon_idle()


def check_an_answer_that_is_given_up_frees_its_request():
    try:
        chat(max_tokens=950, timeout=0.3)
    except openai.APITimeoutError:
        soon_idle()
    else:
        raise AssertionError("no timeout")


def check_many_at_once_are_answered_as_alone():
    prompts = [f"def f{number}(x):" for number in range(16)]

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as many:
            one = [many.completions.create(model=MODEL, prompt=text, max_tokens=8, temperature=0) for text in prompts]
            return [answer.choices[0].text for answer in await asyncio.gather(*one)]

    alone = [client.completions.create(model=MODEL, prompt=text, max_tokens=8, temperature=0) for text in prompts]
    equal(asyncio.run(all_at_once()), [answer.choices[0].text for answer in alone])


def _post(path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


if __name__ == "__main__":
    run(globals())
