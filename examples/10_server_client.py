"""Ask a server through the openai package, as the text comes. First run `penstock serve bundled`."""

import os

try:
    import openai
except ImportError as error:
    raise SystemExit("need the package openai: pip install openai") from error

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")
client = openai.OpenAI(base_url=URL, api_key=KEY)
messages = [{"role": "user", "content": "def binary_search(items, wanted):"}]

try:
    model = client.models.list().data[0].id
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=48, stream=True):
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
except openai.APIConnectionError as error:
    raise SystemExit(f"nothing answers at {URL}: start `penstock serve bundled`") from error
print(f"\n-- answered by {model}")
