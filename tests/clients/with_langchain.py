"""langchain-openai against the server. Run by tests/clients/run.py."""

import asyncio

from checks import MODEL, TOOL, URL, equal, run, true
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

MESSAGES = [SystemMessage("import os"), HumanMessage("def main():")]
SCHEMA = {
    "title": "Person",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def model(**more):
    """A chat model that asks the server."""
    settings = {"temperature": 0, "max_tokens": 12, "max_retries": 0, **more}
    return ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, **settings)


def check_invoke_gives_a_message_with_usage():
    answer = model().invoke(MESSAGES)
    true(isinstance(answer, AIMessage) and answer.content)
    equal(answer.usage_metadata["output_tokens"], 12)
    equal(answer.response_metadata["finish_reason"], "length")


def check_a_stream_has_the_same_text():
    chunks = list(model(stream_usage=True).stream(MESSAGES))
    equal("".join(chunk.content for chunk in chunks), model().invoke(MESSAGES).content)
    equal([chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata], [12])


def check_a_batch_and_asynchronous_calls_are_as_alone():
    texts = [f"def f{number}():" for number in range(6)]
    alone = [model().invoke(text).content for text in texts]
    equal([answer.content for answer in model().batch(texts)], alone)

    async def together():
        return [answer.content for answer in await model().abatch(texts)]

    equal(asyncio.run(together()), alone)


def check_tools_are_bound_and_called():
    bound = model(max_tokens=200, temperature=1, seed=7).bind_tools([TOOL], tool_choice="any")
    [call] = bound.invoke(MESSAGES).tool_calls[:1]
    equal((call["name"], sorted(call["args"])), ("get_weather", ["city", "days"]))
    whole = None
    for chunk in bound.stream(MESSAGES):
        whole = chunk if whole is None else whole + chunk
    equal(whole.tool_calls[0]["args"], call["args"])


def check_structured_output_by_schema():
    answer = model(max_tokens=300, temperature=1, seed=1).with_structured_output(SCHEMA, method="json_schema")
    equal(sorted(answer.invoke(MESSAGES)), ["age", "name"])


def check_log_probabilities_come_along():
    answer = model(logprobs=True, top_logprobs=2).invoke(MESSAGES)
    equal(len(answer.response_metadata["logprobs"]["content"]), 12)


if __name__ == "__main__":
    run(globals())
