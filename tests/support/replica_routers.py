"""The prefix-aware router of ray[llm], given what its requests are called elsewhere; to measure with alone."""

import json
from typing import Any

from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter


class PrefixRouter(PrefixCacheAffinityRouter):
    """Reads the body that the gate hands on."""

    def _extract_text_from_request(self, pending_request: Any) -> str:
        body = json.loads(pending_request.args[1] or b"{}")
        return self._normalize_prompt_to_string(body.get("messages") or body.get("prompt") or "") or " "
