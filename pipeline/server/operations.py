"""What is told of the server, of its model, and of the requests that it has."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.errors import CheckpointError, shown
from pipeline.server.connections import most_connections
from pipeline.server.door import MOST_BODY_BYTES, MOST_HEADER_BYTES
from pipeline.server.errors import RETRY_AFTER_SECONDS, ApiError, told
from pipeline.server.served import served_of
from pipeline.text.chat_templates import DEFAULT

if TYPE_CHECKING:
    from pipeline.api import Model
    from pipeline.generation.section_record import SectionRecord
    from pipeline.system.memory_plan import MemoryPlan


def as_json(content: object, status: int = 200) -> Response:
    """An answer that is one JSON document."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def health(request: Request) -> Response:
    """Whether the model is loading, ready, failing, stuck, draining or failed; 200 when it is ready.

    It is failing as the last request did, and stuck where a pass is under way and nothing moves.
    """
    served = served_of(request)
    state, failure = str(served.state), served.failure
    reason = None if failure is None else told(failure)
    if state == "ready" and (reason := served.stuck) is not None:
        state = "stuck"
    elif state == "ready" and served.line_failure is not None:
        state, reason = "failing", told(served.line_failure)
    if state == "ready":
        return as_json({"status": state})
    response = as_json({"status": state, "reason": reason}, 503)
    if state != "failed":
        response.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return response


async def models(request: Request) -> Response:
    """The names of the model; or of one that is asked for. Raises ApiError 404."""
    served = served_of(request)
    rows = [{"id": name, "object": "model", "created": served.started, "owned_by": "penstock"} for name in served.names]
    if (wanted := request.path_params.get("name")) is None:
        return as_json({"object": "list", "data": rows})
    if wanted not in served.names:
        raise ApiError(404, f"no model {shown(wanted)}; here are {', '.join(served.names)}", code="model_not_found")
    return as_json(rows[served.names.index(wanted)])


async def slots(request: Request) -> Response:
    """Requests that run, then those that wait: where each stands, and never what it says."""
    sequences = list(served_of(request).model.runtime.admission.batcher.sequences)
    return as_json(
        [
            {
                "id": index,
                "state": one.state,
                "paused": one.paused,
                "priority": one.priority,
                "prompt_tokens": len(one.prompt_ids),
                "new_tokens": len(one.token_ids),
                "cached_tokens": one.cached_tokens,
            }
            for index, one in enumerate(sequences)
        ]
    )


async def props(request: Request) -> Response:
    """How the model is run: sections with their plans and budgets, settings, chat template, and limits of requests."""
    served = served_of(request)
    model = served.model
    runtime, said = model.runtime, model.statistics()
    return as_json(
        {
            "names": served.names,
            "family": runtime.config.family,
            "layers": runtime.config.layers,
            "dtype": str(runtime.dtype).removeprefix("torch."),
            "device": ", ".join(one.device for one in said.sections),
            "reading": said.reading,
            "checksums": said.checksums.checking,
            "kv_room": str(runtime.kv_room),
            "pass_size": str(runtime.pass_size),
            "sections": [_section(*one) for one in zip(said.sections, runtime.plans, strict=True)],
            "slots": {name: budget.capacity for name, budget in said.budgets.items()},
            "settings": {field.name: _plain(getattr(runtime.settings, field.name)) for field in _fields(model)},
            "default_generation_settings": model.defaults,
            "chat_template": served.options.template or _template(model),
            "limits": {
                "context_tokens": runtime.context_tokens,
                "max_requests": runtime.settings.max_requests,
                "max_waiting": runtime.settings.max_waiting,
                "body_bytes": MOST_BODY_BYTES,
                "header_bytes": MOST_HEADER_BYTES,
                "connections": most_connections(),
            },
            "total_slots": runtime.settings.max_requests,
        }
    )


def _section(section: "SectionRecord", plan: "MemoryPlan") -> dict[str, object]:
    """What one device computes, and how its memory is used."""
    return {
        "node": section.node,
        "device": section.device,
        "layers": section.layers,
        "has_head": section.has_head,
        "plan": [dataclasses.asdict(one) for one in plan.holdings],
        "budgets": {
            place: {"used_bytes": plan.need(place), "total_bytes": have, "setting": plan.limited_by.get(place)}
            for place, have in plan.available.items()
        },
    }


def _fields(model: "Model") -> Sequence[dataclasses.Field[Any]]:
    return dataclasses.fields(model.runtime.settings)


def _plain(value: object) -> object:
    """The value of a setting, or the class of what only Python can make."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def _template(model: "Model") -> str | None:
    try:
        named = model.tokenizer.chat_templates.named
    except CheckpointError:  # it has no tokenizer
        return None
    return named.get(DEFAULT)
