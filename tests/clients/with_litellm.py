"""litellm against the server. Run by tests/clients/run.py."""

import asyncio
import json

import litellm
from checks import MESSAGES, MODEL, TOOL, URL, equal, run, true

litellm.telemetry = False
litellm.suppress_debug_info = True
SERVER = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0}


def chat(**more):
    """A whole answer."""
    return litellm.completion(**{**SERVER, "messages": MESSAGES, "max_tokens": 12, **more})


def check_a_chat_is_answered_whole_with_usage():
    answer = chat()
    true(answer.choices[0].message.content)
    equal((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 12))


def check_a_stream_has_the_same_text():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    equal(text, chat().choices[0].message.content)
    equal([chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)][-1:], [12])


def check_an_asynchronous_stream_has_the_same_text():
    async def streamed():
        stream = await litellm.acompletion(**SERVER, messages=MESSAGES, max_tokens=12, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    equal(asyncio.run(streamed()), chat().choices[0].message.content)


def check_texts_are_completed():
    settings = {**SERVER, "model": f"text-completion-openai/{MODEL}"}
    answer = litellm.text_completion(**settings, prompt="import os", max_tokens=5, temperature=0)
    equal(answer.usage.completion_tokens, 5)


def check_tools_are_called():
    answer = chat(tools=[TOOL], tool_choice="required", max_tokens=200, temperature=1, seed=9)
    call = answer.choices[0].message.tool_calls[0]
    equal(call.function.name, "get_weather")
    equal(sorted(json.loads(call.function.arguments)), ["city", "days"])


def check_errors_are_mapped():
    for kind, more in [
        (litellm.BadRequestError, {"temperature": -1}),
        (litellm.NotFoundError, {"model": "openai/another"}),
    ]:
        try:
            chat(**more)
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__} for {more}")


if __name__ == "__main__":
    run(globals())
