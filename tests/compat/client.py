"""What docker-py does with a cluster: client.py SOCKET. Prints each step and what came of it, to be compared."""

import json
import sys
import time

import docker
from docker.types import EndpointSpec, Resources, RestartPolicy, SecretReference, ServiceMode, UpdateConfig

IMAGE = "shoal/whoami:latest"
WAIT = 60

client = docker.DockerClient(base_url="unix://" + sys.argv[1], timeout=30)


def step(name, action):
    print("##", name)
    try:
        print(json.dumps(action(), default=str, sort_keys=True))
    except docker.errors.APIError as error:
        print(json.dumps({"status": error.status_code, "message": error.explanation}))
    except docker.errors.DockerException as error:
        print(json.dumps({"error": type(error).__name__}))


def wait(what, condition):
    """Waits for a condition; there is nothing to compare if it never holds."""
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not so after {WAIT} s")
        time.sleep(0.05)


def running(service, count):
    tasks = service.tasks(filters={"desired-state": "running"})
    return len(tasks) == count and all(task["Status"]["State"] == "running" for task in tasks)


def attrs(objects):
    return sorted((item.attrs for item in objects), key=lambda item: json.dumps(item.get("Spec", item), sort_keys=True))


began = int(time.time())

step("ping", client.ping)
step("swarm", lambda: client.swarm.attrs["Spec"]["Name"])
step("swarm.update", lambda: client.swarm.update(rotate_worker_token=True))
step("swarm.init", lambda: client.swarm.init())
step("nodes", lambda: sorted(node.attrs["Description"]["Hostname"] for node in client.nodes.list()))
step("nodes by role", lambda: [node.attrs["Spec"] for node in client.nodes.list(filters={"role": "worker"})])
worker = client.nodes.list(filters={"role": "worker"})[0]
step("node.update", lambda: worker.update({"Availability": "active", "Role": "worker", "Labels": {"by": "py"}}))
wait("the label", lambda: client.nodes.get(worker.id).attrs["Spec"].get("Labels") == {"by": "py"})
step("node", lambda: client.nodes.get(worker.id).attrs["Spec"])
step("no node", lambda: client.nodes.get("nosuch"))

secret = client.secrets.create(name="pysecret", data=b"hidden", labels={"a": "b"})
step("secret", lambda: client.secrets.get(secret.id).attrs)
step("secrets", lambda: attrs(client.secrets.list(filters={"name": "pysecret"})))
step("secret again", lambda: client.secrets.create(name="pysecret", data=b"hidden"))
config = client.configs.create(name="pyconfig", data=b"conf=1", labels={"a": "b"})
step("config", lambda: client.configs.get(config.id).attrs)
step("configs", lambda: attrs(client.configs.list(filters={"name": "pyconfig"})))
step("no config", lambda: client.configs.get("nosuch"))
network = client.networks.create("pynet", driver="overlay", labels={"a": "b"})
step("network", lambda: client.networks.get(network.id).attrs)
step("networks", lambda: [net.name for net in client.networks.list(names=["pynet"])])
step("no network", lambda: client.networks.get("nosuch"))

service = client.services.create(
    IMAGE,
    name="py",
    env=["A=1"],
    labels={"l": "1"},
    container_labels={"cl": "1"},
    mode=ServiceMode("replicated", replicas=2),
    networks=["pynet"],
    secrets=[SecretReference(secret.id, "pysecret")],
    endpoint_spec=EndpointSpec(ports={8090: 80}),
    resources=Resources(cpu_limit=500_000_000, mem_limit=64 << 20),
    restart_policy=RestartPolicy(condition="any", delay=100_000_000),
    update_config=UpdateConfig(parallelism=0, monitor=1_000_000_000),
)
wait("two tasks", lambda: running(service, 2))
step("service", lambda: client.services.get("py").attrs)
step("services", lambda: [item.name for item in client.services.list(filters={"name": "py"})])
step("service with status", lambda: client.services.list(filters={"name": "py"}, status=True)[0].attrs["ServiceStatus"])
step("tasks", lambda: [task["Spec"] for task in service.tasks(filters={"desired-state": "running"})])
step("task states", lambda: sorted([task["Slot"], task["Status"]["State"], task["DesiredState"]] for task in service.tasks()))
step("logs", lambda: sorted(line.decode() for line in service.logs(stdout=True)))
step("service again", lambda: client.services.create(IMAGE, name="py"))
step("no service", lambda: client.services.get("nosuch"))
service.reload()
step("scale", lambda: service.scale(3))
wait("three tasks", lambda: running(service, 3))
service.reload()
step("update", lambda: service.update(env=["A=2"], fetch_current_spec=True))
wait("three new tasks", lambda: client.services.get("py").attrs.get("UpdateStatus", {}).get("State") == "completed")
step("updated", lambda: client.services.get("py").attrs["Spec"]["TaskTemplate"]["ContainerSpec"])
step("force_update", lambda: client.services.get("py").force_update())
step("stale", lambda: client.api.update_service(service.id, 1, name="py"))
step("secret in use", lambda: secret.remove())
step("remove", lambda: client.services.get("py").remove())
wait("no tasks", lambda: not client.api.tasks(filters={"name": "py"}))
step("secret gone", lambda: secret.remove())
step("config gone", lambda: config.remove())


def network_gone():
    try:
        network.remove()
        return True
    except docker.errors.APIError:
        return False


wait("the network is not used", network_gone)


def events(kind):
    stream = client.events(since=began, until=int(time.time()) + 1, decode=True, filters={"type": kind, "scope": "swarm"})
    told = [[event["Type"], event["Action"], event["Actor"]["Attributes"].get("name")] for event in stream]
    return [event for event in told if event[2] in ("py", "pysecret", "pyconfig")]


step("events of secrets", lambda: events("secret"))
step("events of configs", lambda: events("config"))
step("events of services", lambda: [event for event in events("service") if event[1] != "update"])
