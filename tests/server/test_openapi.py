"""The OpenAPI document tells of every route, and of every field that a body is read by."""

import json
import re

from starlette.testclient import TestClient

from pipeline.server.app import ROUTES, make_app
from pipeline.server.options import ServerOptions
from pipeline.server.served import ServedModel
from pipeline.system.hub_cache import BUNDLED


def test_the_document_has_all_routes_and_fields_and_refers_to_nothing_else() -> None:
    app = make_app(ServedModel(ServerOptions(model=BUNDLED, names=("small", "tiny"))))
    client = TestClient(app, "http://localhost")
    document = client.get("/openapi.json").json()
    assert {re.sub(r":\w+}", "}", path) for path in ROUTES} == document["paths"].keys()
    schemas = document["components"]["schemas"]
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= schemas.keys()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"] == "Answer messages."
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatBody")
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    fields = schemas["ChatBody"]["properties"]
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}
    assert fields["logprobs"]["anyOf"][0] == {"type": "boolean"}, "of completions it is a number"
    assert schemas["CompletionBody"]["properties"]["logprobs"]["anyOf"][0]["type"] == "integer"
    assert fields["model"]["anyOf"][0] == {"enum": ["small", "tiny"]}
    [parameter] = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"]) == ("name", "path")
