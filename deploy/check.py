"""python -m deploy.check FILE...     find the mistakes in a cluster.yaml or a Serve config, offline.

Ray's own schemas first, then what they leave open: Ray accepts a misspelt key in most places and ignores it,
so that a typo costs a cluster that is too large or a service that never scales. Each finding is one line: the
dotted key, the value, and what is allowed.
"""

import difflib
import json
import sys
import types
import typing
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import botocore.session
import jsonschema
import ray.autoscaler
import yaml
from botocore.model import ListShape, Shape, StructureShape
from botocore.validate import ParamValidator
from pydantic import BaseModel, ValidationError
from ray._common.utils import import_attr
from ray.autoscaler._private import providers
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

_OPEN = "every interface is Serve's default, and its port asks for no token"
# Keys of a node_config that are Ray's: it takes them out before it calls EC2, or sets them itself.
_RAY_NODE_KEYS = {"SubnetIds"}
_EC2_KEYS_SET_BY_RAY = {"MinCount": 1, "MaxCount": 1}
# Read by Ray's AWS provider, absent from its schema.
_RAY_PROVIDER_KEYS = {"aws_credentials"}


def find_problems(path: Path | str) -> list[str]:
    """The findings of a file, which is recognised as a cluster or a Serve config by its keys."""
    config, problems = _load(path)
    if problems:
        return problems
    num_serve_keys = len(config.keys() & ServeDeploySchema.model_fields.keys())
    num_cluster_keys = len(config.keys() & _cluster_schema()["properties"].keys())
    if not num_serve_keys and not num_cluster_keys:
        return ["has neither the keys of a cluster.yaml nor those of a Serve config"]
    return find_cluster_problems(path) if num_cluster_keys >= num_serve_keys else find_serve_problems(path)


def find_cluster_problems(path: Path | str) -> list[str]:
    """One line for each mistake in a cluster launcher's file; file_mounts are relative to its folder."""
    config, problems = _load(path)
    if problems:
        return problems
    problems += _schema_problems(config)
    if problems:  # of the wrong shape: what follows could not be read
        return problems
    provider = config["provider"]
    problems += _provider_problems(provider)
    problems += _node_type_problems(config)
    problems += _mount_problems(config.get("file_mounts", {}), Path(path).parent)
    if provider["type"] == "aws":
        for name, node_type in config.get("available_node_types", {}).items():
            problems += _ec2_problems(node_type["node_config"], f"available_node_types.{name}.node_config")
    if not problems:
        try:
            validate_config(prepare_config(config))
        except (AssertionError, ValueError, RuntimeError, jsonschema.ValidationError) as error:
            problems.append(f"Ray refuses the file: {str(error).splitlines()[0]}")
    return problems


def find_serve_problems(path: Path | str, deployments: Collection[str] | None = None) -> list[str]:
    """One line for each mistake in a Serve config.

    The applications' code is imported, its arguments are checked by the model that the builder takes, and it is built
    to see which deployments there are, unless `deployments` names them.
    """
    config, problems = _load(path)
    if problems:
        return problems
    problems += _unknown_fields(config, ServeDeploySchema, "")
    problems += _host_problems(config.get("http_options"))
    if problems:
        return problems
    try:
        applications = ServeDeploySchema.model_validate(config).applications
    except ValidationError as error:
        return _validation_problems(error, "")
    for i, application in enumerate(applications):
        problems += _application_problems(application, f"applications[{i}]", deployments)
    return problems


def _host_problems(options: object) -> Iterator[str]:
    host = options.get("host") if isinstance(options, dict) else None
    advice = "the address to listen on, such as 127.0.0.1"
    if not host:
        yield f"http_options.host: missing, required: {advice} ({_OPEN})"
    elif host in ("0.0.0.0", "::"):
        yield f"http_options.host: {host!r}; must be {advice}, behind a gateway with authentication ({_OPEN})"


def _application_problems(
    application: ServeApplicationSchema, key: str, deployments: Collection[str] | None
) -> Iterator[str]:
    if deployments is None:
        try:
            deployments = _declared(application)
        except ValidationError as error:
            yield from _validation_problems(error, f"{key}.args")
            return
        except Exception as error:  # whatever the application's own code raises is the finding
            told = str(error).splitlines() or [""]
            yield f"{key}.import_path: {application.import_path!r} cannot be built: {type(error).__name__}: {told[0]}"
            return
    for j, deployment in enumerate(application.deployments):
        if deployment.name not in deployments:
            name = f"{key}.deployments[{j}].name"
            yield _unknown(name, deployment.name, deployment.name, deployments, "deployment")


def _declared(application: ServeApplicationSchema) -> list[str]:
    """The deployments of the application, built here and not run."""
    target = import_attr(application.import_path)
    built = build_app(call_user_app_builder_with_args_if_necessary(target, application.args), name=application.name)
    return [deployment.name for deployment in built.deployments]


def _load(path: Path | str) -> tuple[dict, list[str]]:
    try:
        config = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, [f"cannot be read: {' '.join(str(error).split())}"]
    if not isinstance(config, dict):
        return {}, [f"is {_short(config)}; must be a mapping of keys"]
    return config, []


def _dotted(parts: Collection[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.lstrip(".")


def _unknown(key: str, name: str, value: object, allowed: Collection[str], kind: str = "key") -> str:
    close = difflib.get_close_matches(str(name), sorted(allowed), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{key}: unknown {kind} (value {_short(value)}){hint} allowed: {', '.join(sorted(allowed))}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _cluster_schema() -> dict:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def _schema_problems(config: dict) -> Iterator[str]:
    """Ray's own schema, every finding instead of the first."""
    for error in jsonschema.Draft7Validator(_cluster_schema()).iter_errors(config):
        where = list(error.absolute_path)
        if error.validator == "additionalProperties":
            # Node types are pattern properties, so of those only the keys beneath can be unknown.
            allowed = error.schema.get("properties", {})
            for name in sorted(error.instance.keys() - allowed.keys(), key=str):
                yield _unknown(_dotted([*where, name]), name, error.instance[name], allowed)
        elif error.validator == "required":
            for name in sorted(set(error.validator_value) - error.instance.keys()):
                yield f"{_dotted([*where, name])}: missing, required"
        else:
            must = f"{error.validator} {error.validator_value}"
            yield f"{_dotted(where)}: {_short(error.instance)}; must have {must}"


def _provider_problems(provider: dict) -> Iterator[str]:
    known = providers._NODE_PROVIDERS
    if provider["type"] not in known:
        yield _unknown("provider.type", provider["type"], provider["type"], known, "provider")
        return
    if provider["type"] != "aws":
        return
    allowed = _cluster_schema()["properties"]["provider"]["properties"].keys() | _RAY_PROVIDER_KEYS
    for name in sorted(provider.keys() - allowed):
        yield _unknown(f"provider.{name}", name, provider[name], allowed)
    if not provider.get("region"):
        yield "provider.region: missing, required: a region such as us-west-2"


def _node_type_problems(config: dict) -> Iterator[str]:
    node_types = config.get("available_node_types", {})
    if not node_types:
        yield "available_node_types: missing, required: without it Ray starts node types of its own choice"
        return
    head = config.get("head_node_type")
    if head not in node_types:
        yield f"head_node_type: {head!r}; must be one of {', '.join(node_types)}"
    total = config.get("max_workers")
    if total is None:
        yield "max_workers: missing, required: the most workers of all types together (Ray's default is 2)"
    for name, node_type in node_types.items():
        least = node_type.get("min_workers", 0)
        most = node_type.get("max_workers", 0 if name == head else total)
        if least < 0 or (most is not None and least > most):
            key = f"available_node_types.{name}.min_workers"
            yield f"{key}: {least}; must be from 0 to the type's max_workers, {most}"
    num_least = sum(node_type.get("min_workers", 0) for node_type in node_types.values())
    if total is not None and num_least > total:
        yield f"max_workers: {total}; must be at least {num_least}, the sum of min_workers over all types"


def _mount_problems(mounts: dict[str, str], folder: Path) -> Iterator[str]:
    for remote, local in mounts.items():
        if not isinstance(local, str) or not (folder / Path(local).expanduser()).exists():
            yield f"file_mounts.{remote}: {local!r}; must exist, as a file or folder, relative to {folder}"


def _ec2_problems(node_config: dict, key: str) -> list[str]:
    """A node_config beside the arguments of EC2's RunInstances, which it becomes."""
    shape = _run_instances()
    arguments = {name: value for name, value in node_config.items() if name not in _RAY_NODE_KEYS}
    problems = list(_unknown_members(arguments, shape, key))
    if not problems:
        report = ParamValidator().validate(arguments | _EC2_KEYS_SET_BY_RAY, shape)
        problems = [f"{key}: {line}" for line in report.generate_report().splitlines()]
    return problems


@cache
def _run_instances() -> StructureShape:
    """The arguments of EC2's RunInstances, from the service model that boto3 brings along."""
    ec2 = botocore.session.get_session().get_service_model("ec2")
    return ec2.operation_model("RunInstances").input_shape


def _unknown_members(value: object, shape: Shape, key: str) -> Iterator[str]:
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for name, item in value.items():
            if name in shape.members:
                yield from _unknown_members(item, shape.members[name], f"{key}.{name}")
            else:
                yield _unknown(f"{key}.{name}", name, item, shape.members)
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unknown_members(item, shape.member, f"{key}[{i}]")


def _unknown_fields(value: object, annotation: object, key: str) -> Iterator[str]:
    """Keys of `value` that the pydantic models in `annotation` do not have, at every level.

    Where the annotation would also take any mapping, as that of autoscaling_config does, pydantic checks no
    values either: the model's own findings are added there.
    """
    models, takes_mapping, item_annotation = _parts(annotation)
    if isinstance(value, list) and item_annotation is not None:
        for i, item in enumerate(value):
            yield from _unknown_fields(item, item_annotation, f"{key}[{i}]")
        return
    if not models or value is None:
        return
    if not isinstance(value, dict):
        yield f"{key}: {_short(value)}; must be a mapping of keys"
        return
    (model,) = models
    for name, item in value.items():
        inner = _dotted([key, name])
        if name not in model.model_fields:
            yield _unknown(inner, name, item, model.model_fields)
        elif name == "runtime_env" and isinstance(item, dict):
            for entry in sorted(item.keys() - RuntimeEnv.known_fields):
                yield _unknown(f"{inner}.{entry}", entry, item[entry], RuntimeEnv.known_fields)
        else:
            yield from _unknown_fields(item, model.model_fields[name].annotation, inner)
    if takes_mapping and value.keys() <= model.model_fields.keys():
        try:
            model.model_validate(value)
        except ValidationError as error:
            yield from _validation_problems(error, key)


def _parts(annotation: object) -> tuple[list[type[BaseModel]], bool, object]:
    """(the models, whether any mapping will do, the annotation of a list's items) of an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_parts(argument) for argument in arguments]
        models = [model for part in parts for model in part[0]]
        return models, any(part[1] for part in parts), next((part[2] for part in parts if part[2]), None)
    if origin is list:
        return [], False, arguments[0]
    if annotation is dict or origin is dict:
        return [], True, None
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else [], False, None


def _validation_problems(error: ValidationError, key: str) -> list[str]:
    return [
        f"{_dotted([key, *problem['loc']])}: {_short(problem['input'])}; {problem['msg']}" for problem in error.errors()
    ]


def main(paths: list[str]) -> int:
    """Print each file's findings; 1 if there are any."""
    problems = [f"{path}: {line}" for path in paths for line in find_problems(path)]
    print("\n".join(problems or [f"no mistakes found in {', '.join(paths)}"]))
    return 1 if problems else 0


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: " + __doc__.splitlines()[0])
    sys.exit(main(sys.argv[1:]))
