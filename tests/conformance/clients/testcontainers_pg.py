"""Testcontainers: a database for one test, reached over its published port."""

import psycopg2
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs
from testcontainers.postgres import PostgresContainer

with PostgresContainer("postgres:15", driver=None) as postgres:
    connection = psycopg2.connect(postgres.get_connection_url())
    with connection, connection.cursor() as cursor:
        cursor.execute("create table t (n int)")
        cursor.execute("insert into t select generate_series(1, 1000)")
        cursor.execute("select sum(n) from t")
        assert cursor.fetchone()[0] == 500500
    connection.close()
    assert postgres.exec(["id", "-un"]).output == b"postgres\n"

with DockerContainer("busybox").with_command("sh -c 'echo ready; exec sleep 1000'") as box:
    wait_for_logs(box, "ready", timeout=20)
    assert box.get_logs()[0] == b"ready\n"
print("done")
