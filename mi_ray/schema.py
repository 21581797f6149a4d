"""A JSON Schema of sweep files, from the keys of `mi_ray.config` and the registries: what an editor completes and checks by.

It is as strict as JSON Schema allows; what needs more, such as a selection below the number of points, `mi-ray plan` says.
"""

from collections.abc import Iterable
from typing import Any, get_args

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import ARCHITECTURES
from mi_ray.config import ADAPTIVE, Sweep
from mi_ray.data import SOURCES
from mi_ray.defenses import DEFENSES
from mi_ray.named import NETWORKS
from mi_ray.objectives import OBJECTIVES
from mi_ray.parameters import Parameter, Parameterized, Registry
from mi_ray.refusals import FACTORY
from mi_ray.threat_model import Goal

Schema = dict[str, Any]
TEXT, NUMBER = {"type": "string"}, {"type": ["number", "string"]}  # A number may be written as 8/255.
# What Pydantic calls the bounds of a number that it has read by a function.
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def sweep_schema() -> Schema:
    """The schema of a sweep file, draft 2020-12."""
    found = Sweep.model_json_schema()
    defs, top = found["$defs"], found["properties"]
    defs.pop("Method", None)
    top["dataset"] = _described(top["dataset"], _method(SOURCES))
    top["pool"] = _described(top["pool"], {"anyOf": [{"type": "null"}, _method(SOURCES)]})
    top["executions"] = _described(top["executions"], _one_or_list({"type": "integer", "minimum": 1}))
    top["search"] = _described(
        top["search"],
        {"anyOf": [{"const": "grid"}, {"const": "optuna"}, _object({"optuna": {"$ref": "#/$defs/OptunaSearch"}})]},
    )
    levels = {"enum": ["cheap", "subset", "full"]}
    top["checks"] = _described(top["checks"], {"anyOf": [levels, {"$ref": "#/$defs/Checks"}]})
    top["smoke"] = {
        "type": "object",
        "description": "What --smoke lays over the file.",
        "properties": {key: {"$ref": f"#/properties/{key}"} for key in top},
    }
    entry = defs["ClassifierEntry"]["properties"]
    entry["architecture"] = _described(entry["architecture"], {"anyOf": [{"type": "null"}, _method(ARCHITECTURES)]})
    entry["objective"] = _described(entry["objective"], _method(OBJECTIVES))
    source = entry.pop("source")
    entry |= {name: _described(source, _values(NETWORKS[name], axes=False)) for name in NETWORKS}
    for registry, models in ((ATTACKS, ("AttackEntry", "ImagesEntry")), (DEFENSES, ("DefenseEntry",))):
        defs |= {_place(registry, name): _values(registry[name], axes=True) for name in registry}
        for model in models:
            _entry(defs[model], registry)
    attack = defs["AttackEntry"]["properties"]
    attack["epsilon"] = _described(attack["epsilon"], _one_or_list(NUMBER))
    attack["goal"] = _described(attack["goal"], _one_or_list({"enum": list(get_args(Goal))}))
    attack[ADAPTIVE] = {"type": "object", "description": "The attack that the option `adaptive_attack` names."}
    defense = defs["DefenseEntry"]
    for properties in (attack, defense["properties"]):
        names = {"anyOf": [{"type": "null"}, _one_or_list(TEXT)]}
        properties["classifiers"] = _described(properties["classifiers"], names)
    through = {"type": "object", "additionalProperties": True, "minProperties": 1, "maxProperties": 1}
    settings = {"anyOf": [{"type": "null"}, _one_or_list({"anyOf": [TEXT, through]})]}
    attack["defenses"] = _described(attack["defenses"], settings)
    defs["DefenseEntry"] = {"anyOf": [{**TEXT, "examples": list(DEFENSES)}, defense]}
    defs["BlockResources"]["properties"]["memory_budget"] |= {"anyOf": [{"type": ["integer", "string", "null"]}]}
    _with_quotients(defs)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A sweep file of mi_ray", **found}


def _with_quotients(schema: object) -> None:
    """Let every number be written as a quotient too, in place; its bounds hold for what is written as a number."""
    if isinstance(schema, dict):
        if schema.get("type") == "number":
            bounds = {BOUNDS[name]: schema.pop(name) for name in BOUNDS.keys() & schema.keys()}
            schema |= NUMBER | bounds
        for part in schema.values():
            _with_quotients(part)
    elif isinstance(schema, list):
        for part in schema:
            _with_quotients(part)


def _described(written: Schema, schema: Schema) -> Schema:
    """Another schema with the description and title that a key has."""
    return {**{key: written[key] for key in ("description", "title") if key in written}, **schema}


def _object(properties: Schema, required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _one_or_list(value: Schema) -> Schema:
    return {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _place(registry: Registry[Any], name: str) -> str:
    """Where a method is described among the definitions. A reference must be a URI, in which there is no space."""
    return f"{registry.noun.replace(' ', '-')}-{name}"


def _entry(model: Schema, registry: Registry[Any]) -> None:
    """Replace the key `method` of an entry's schema, in place, by a key for each method of the registry.

    Names of plugins stay allowed.
    """
    properties = model["properties"]
    properties.pop("method")
    properties |= {name: {"$ref": f"#/$defs/{_place(registry, name)}"} for name in registry}
    model["required"] = [key for key in model.get("required", []) if key != "method"]
    model["additionalProperties"] = {"type": ["object", "null", "number", "string", "array"]}


def _method(registry: Registry[Any]) -> Schema:
    """A method by its name, or by its name with parameters; names of plugins are allowed too."""
    known = {name: _values(registry[name], axes=False) for name in registry}
    described = {"type": "object", "properties": known, "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"type": "string", "examples": list(registry)}, described]}


def _values(method: type[Parameterized], *, axes: bool) -> Schema:
    """What is written under a method's name. axes: whether a parameter may have several values."""
    parameters = {key: _parameter(parameter, axes) for key, parameter in method.parameters().items()}
    first = parameters.get(getattr(method, "short", ""), next(iter(parameters.values()), None))
    known = _object(parameters, method.required())
    if method is SOURCES["torchvision"]:  # Its class may be called `name`.
        known = {**known, "properties": {**parameters, "name": parameters["dataset"]}, "required": []}
    sentence = " ".join((method.__doc__ or "").split("\n\n")[0].split())
    return {"description": sentence, "anyOf": [known, {"type": "null"}, *([] if first is None else [first])]}


def _parameter(parameter: Parameter, axes: bool) -> Schema:
    bounds = {"minimum": parameter.low, "maximum": parameter.high}
    limits = {key: bound for key, bound in bounds.items() if bound is not None}
    whole: Schema = {"type": "integer", **limits}
    pair = {"type": "array", "items": whole, "minItems": 2, "maxItems": 2}
    number = {"type": ["number", "string"], **limits}
    kinds: dict[str, Schema] = {
        "number": number,
        "integer": whole,
        "integers": _one_or_list(whole),
        "pair": pair,
        "flag": {"type": "boolean"},
        "choice": {"enum": list(parameter.choices)},
        "text": TEXT,
        "factory": {**TEXT, "pattern": FACTORY},
        "methods": _one_or_list({"type": ["string", "object"]}),
        "ratio": {"anyOf": [number, {"type": "object", "minProperties": 1, "maxProperties": 1}]},
    }
    value: Schema = {"anyOf": [kinds[parameter.kind], {"type": "null"}]}
    if axes:
        spaced = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 3}
        ranges = [_object({how: spaced}, [how]) for how in ("linspace", "arange")]
        value = {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}, *ranges]}
    return {"description": f"{parameter.help}; {parameter.allowed()}", **value}
