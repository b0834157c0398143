"""What the OpenAPI page says beyond the types of the answers."""

from serve.checks import Pair

DESCRIPTION = (
    "Do two passages come from the same book? Texts longer than a passage are cut as the training data was, and the "
    "logits of their passages averaged. Probabilities were calibrated on pairs of single passages; for longer or much "
    "shorter texts they rank the answers but are not calibrated, and `calibrated` is false."
)
REFUSALS = {
    400: "Not JSON, or not UTF-8",
    413: "Too large: the body, a text, the list, or the passages of all texts",
    422: "A field is wrong",
    503: "Too many requests at once; ask again",
    504: "Not answered in time",
}
_PAIR = Pair.model_json_schema()
_PAIRS = {
    "type": "object",
    "required": ["pairs"],
    "additionalProperties": False,
    "properties": {"pairs": {"type": "array", "items": _PAIR, "minItems": 1}},
}
OPENAPI = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": [_PAIR, _PAIRS]}}}},
    "responses": {str(code): {"description": text} for code, text in REFUSALS.items()},
}
