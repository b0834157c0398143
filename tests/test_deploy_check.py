"""The mistakes that Ray lets through in a cluster's or a service's file are found before they cost money."""

import json
from pathlib import Path

import pytest
import yaml

from deploy.check import find_cluster_problems, find_problems, find_serve_problems, main

ROOT = Path(__file__).parents[1]

SERVE = """
proxy_location: EveryNode
http_options: {host: 127.0.0.1, port: 8000}
logging_config: {log_level: INFO}
applications:
  - name: matcher
    route_prefix: /
    import_path: serve.app:build
    runtime_env: {env_vars: {OMP_NUM_THREADS: "1"}}
    args: {matcher: artifacts/models/m}
    deployments:
      - name: BiEncoder
        max_ongoing_requests: 32
        ray_actor_options: {num_cpus: 1}
        autoscaling_config: {min_replicas: 1, max_replicas: 4}
      - name: Ingress
        num_replicas: 2
        user_config: {anything: the deployment checks this itself}
"""


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def planted(config: dict, path: str, value: object) -> dict:
    """A copy of `config` with the key at `path` set to `value`, or removed where that is `...`."""
    config = json.loads(json.dumps(config))  # deepcopy would keep shared what one YAML anchor gave to several
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    inner = config
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return config


def write(folder: Path, config: dict) -> Path:
    """`config` as a file beside the files that the shipped cluster.yaml mounts."""
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_shipped_files_are_clean():
    assert find_problems(ROOT / "cluster.yaml") == []
    assert find_problems(ROOT / "serve" / "config.yaml") == []


TYPES = "available_node_types"


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("max_worker", 3, "max_worker"),
        ("cluster_name", ..., "cluster_name"),
        ("max_workers", "3", "max_workers"),
        ("max_workers", ..., "max_workers"),
        ("provider/type", "awz", "provider.type"),
        ("provider/cache_stoped_nodes", True, "provider.cache_stoped_nodes"),
        ("provider/region", ..., "provider.region"),
        ("head_node_type", "heads", "head_node_type"),
        ("head_node_type", ..., "head_node_type"),
        ("available_node_types", ..., "available_node_types"),
        ("file_mounts/~code", "no-such-folder", "file_mounts.~code"),
        ("file_mounts/~code", 3, "file_mounts.~code"),
        ("docker", {"image": "some/image"}, "Ray refuses the file"),
        (f"{TYPES}/cpu/min_workers", 9, f"{TYPES}.cpu.min_workers"),
        (f"{TYPES}/cpu/min_workers", -1, f"{TYPES}.cpu.min_workers"),
        (f"{TYPES}/head/min_workers", 1, f"{TYPES}.head.min_workers"),
        (f"{TYPES}/cpu/idle_timeout", 9, f"{TYPES}.cpu.idle_timeout"),
        (f"{TYPES}/cpu/resources/CPU", 1.5, f"{TYPES}.cpu.resources.CPU"),
        (f"{TYPES}/cpu/node_config", ..., f"{TYPES}.cpu.node_config"),
        (f"{TYPES}/gpu/node_config/InstanceTyp", "g6.xlarge", f"{TYPES}.gpu.node_config.InstanceTyp"),
        (f"{TYPES}/gpu/node_config/InstanceType", 6, f"{TYPES}.gpu.node_config"),
        (
            f"{TYPES}/gpu/node_config/BlockDeviceMappings/0/Ebs/Size",
            9,
            f"{TYPES}.gpu.node_config.BlockDeviceMappings[0].Ebs.Size",
        ),
    ],
)
def test_a_mistake_in_a_cluster_is_found_by_its_key(cluster, tmp_path, path, value, key):
    (problem,) = find_cluster_problems(write(tmp_path, planted(cluster, path, value)))
    assert problem.startswith(f"{key}: ")


def test_workers_that_exceed_the_cluster_together_are_found(cluster, tmp_path):
    config = planted(cluster, "max_workers", 5)
    for name in ("cpu", "gpu"):
        config = planted(config, f"{TYPES}/{name}/min_workers", 3)
    (problem,) = find_cluster_problems(write(tmp_path, config))
    assert problem.startswith("max_workers: 5; must be at least 6")


def test_a_finding_proposes_the_nearest_allowed_key(cluster, tmp_path):
    (problem,) = find_cluster_problems(write(tmp_path, planted(cluster, "max_worker", 3)))
    assert "value 3" in problem
    assert "did you mean max_workers?" in problem


def test_a_clean_service_has_no_findings(tmp_path):
    path = write(tmp_path, yaml.safe_load(SERVE))
    assert find_serve_problems(path) == []
    assert find_serve_problems(path, deployments=["BiEncoder", "Ingress"]) == []


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("proxy_locations", "HeadOnly", "proxy_locations"),
        ("proxy_location", "Nowhere", "proxy_location"),
        ("http_options", ..., "http_options.host"),
        ("http_options/host", ..., "http_options.host"),
        ("http_options/host", "0.0.0.0", "http_options.host"),
        ("http_options/host", "::", "http_options.host"),
        ("http_options/prot", 80, "http_options.prot"),
        ("logging_config/level", "INFO", "logging_config.level"),
        ("applications/0/import", "a:b", "applications[0].import"),
        ("applications/0/import_path", "nothing", "applications[0].import_path"),
        ("applications/0/import_path", "serve.app:built", "applications[0].import_path"),
        ("applications/0/import_path", "no_such_module:build", "applications[0].import_path"),
        ("applications/0/args/matcher", ..., "applications[0].args.matcher"),
        ("applications/0/args/max_pair", 9, "applications[0].args.max_pair"),
        ("applications/0/args/max_pairs", 0, "applications[0].args.max_pairs"),
        ("applications/0/deployments/0/name", "BiEncode", "applications[0].deployments[0].name"),
        ("applications/0/runtime_env/env_var", {}, "applications[0].runtime_env.env_var"),
        ("applications/0/deployments/1", "Ingress", "applications[0].deployments[1]"),
        ("applications/0/deployments/1/num_replica", 2, "applications[0].deployments[1].num_replica"),
        (
            "applications/0/deployments/0/ray_actor_options/num_cpu",
            2,
            "applications[0].deployments[0].ray_actor_options.num_cpu",
        ),
        (
            "applications/0/deployments/0/autoscaling_config/max_replica",
            2,
            "applications[0].deployments[0].autoscaling_config.max_replica",
        ),
        (
            "applications/0/deployments/0/autoscaling_config/max_replicas",
            0,
            "applications[0].deployments[0].autoscaling_config.max_replicas",
        ),
        (
            "applications/0/deployments/0/autoscaling_config/min_replicas",
            9,
            "applications[0].deployments[0].autoscaling_config",
        ),
    ],
)
def test_a_mistake_in_a_service_is_found_by_its_key(tmp_path, path, value, key):
    (problem,) = find_serve_problems(write(tmp_path, planted(yaml.safe_load(SERVE), path, value)))
    assert problem.startswith(f"{key}: ")


def test_a_deployment_that_the_application_does_not_declare_is_found(tmp_path):
    path = write(tmp_path, yaml.safe_load(SERVE))
    (problem,) = find_serve_problems(path, deployments=["BiEncode", "Ingress"])
    assert problem.startswith("applications[0].deployments[0].name: ")
    assert "did you mean BiEncode?" in problem


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "some_key: 1"])
def test_what_is_neither_kind_of_file_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert len(find_problems(path)) == 1


def test_the_exit_status_says_whether_there_are_mistakes(tmp_path):
    config = yaml.safe_load(SERVE)
    assert main([str(write(tmp_path, config))]) == 0
    assert main([str(write(tmp_path, planted(config, "http_options", ...)))]) == 1
    assert main([str(tmp_path / "missing.yaml")]) == 1
