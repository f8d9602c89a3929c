"""PostgreSQL, the S3 store and MLflow, started from their manifests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.local_kubernetes.http_probe import page
from infra.local_kubernetes.kuberay_operator import wait_until
from infra.local_kubernetes.pods import Kubelet, Pod

# What the image postgres:17 does when its data folder is empty, according to its documentation.
POSTGRES = """
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --auth-host=scram-sha-256 --auth-local=trust --pwfile=/dev/fd/3 3<<END >/dev/null
$POSTGRES_PASSWORD
END
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -h '*'
"""


@contextmanager
def postgres(kubelet: Kubelet) -> Iterator[Pod]:
    """Run the database for the duration of the block; it is ready when the block begins."""
    template = kubelet.namespace.named("StatefulSet", "postgres")["spec"]["template"]
    command = ["/bin/sh", "-c", POSTGRES]
    with kubelet.pod(
        "postgres-0", template, template["metadata"]["labels"], command=command, services=["postgres"]
    ) as pod:
        probe = template["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
        wait_until("PostgreSQL is ready", lambda: pod.run(probe)[0] == 0, alive=[pod])
        yield pod


@contextmanager
def s3(kubelet: Kubelet) -> Iterator[Pod]:
    """Run the S3 store for the duration of the block; it is ready when the block begins."""
    template = kubelet.namespace.named("StatefulSet", "s3")["spec"]["template"]
    with kubelet.pod("s3-0", template, template["metadata"]["labels"], services=["s3"]) as pod:
        wait_until("the S3 store listens", lambda: "Starting s3 server" in pod.text(), alive=[pod])
        yield pod


@contextmanager
def mlflow(kubelet: Kubelet) -> Iterator[Pod]:
    """Create MLflow's tables and run its server for the duration of the block; it is ready when the block begins."""
    template = kubelet.namespace.named("Deployment", "mlflow")["spec"]["template"]
    with kubelet.pod("mlflow-1", template, template["metadata"]["labels"], services=["mlflow"]) as pod:
        probe = "http://localhost:5000/health"
        wait_until("MLflow is ready", lambda: page(pod, probe), alive=[pod])
        yield pod
