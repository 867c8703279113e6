-- What the users of users.sql need besides, in a database that was made for a cluster
-- (authz migrate --cluster). Safe to repeat.

CREATE ROLE IF NOT EXISTS authz_log_cluster;
GRANT SELECT ON audit_log_local TO authz_log_cluster;
GRANT SELECT ON checkpoints_local TO authz_log_cluster;

CREATE ROLE IF NOT EXISTS authz_proof_cluster;
GRANT SELECT ON tiles_local TO authz_proof_cluster;
GRANT SELECT ON policies_local TO authz_proof_cluster;
GRANT SELECT ON sealed_originals_local TO authz_proof_cluster;

CREATE ROLE IF NOT EXISTS authz_usual_cluster;
GRANT SELECT ON activity_hourly_local TO authz_usual_cluster;
GRANT SELECT ON baseline_daily_local TO authz_usual_cluster;

CREATE ROLE IF NOT EXISTS authz_tenant_cluster;
GRANT SELECT ON tiles_local TO authz_tenant_cluster;

-- It looks at each server's own rows, by clusterAllReplicas.
CREATE ROLE IF NOT EXISTS authz_receiver_cluster;
GRANT SELECT, INSERT ON audit_log_local TO authz_receiver_cluster;
GRANT SELECT, INSERT ON sealed_originals_local TO authz_receiver_cluster;
GRANT SELECT, INSERT ON policies_local TO authz_receiver_cluster;
GRANT INSERT ON tiles_local TO authz_receiver_cluster;
GRANT SELECT, INSERT ON checkpoints_local TO authz_receiver_cluster;
GRANT SELECT ON system.clusters TO authz_receiver_cluster;
GRANT READ ON REMOTE TO authz_receiver_cluster;

-- It reads each server's own log of queries.
CREATE ROLE IF NOT EXISTS authz_watch_cluster;
GRANT SELECT ON system.clusters TO authz_watch_cluster;
GRANT READ ON REMOTE TO authz_watch_cluster;

CREATE ROLE IF NOT EXISTS authz_retention_cluster;
GRANT INSERT, ALTER DELETE ON audit_log_local TO authz_retention_cluster;
GRANT INSERT, ALTER DELETE ON sealed_originals_local TO authz_retention_cluster;
GRANT SELECT ON system.clusters TO authz_retention_cluster;
GRANT READ ON REMOTE TO authz_retention_cluster;
GRANT CLUSTER ON *.* TO authz_retention_cluster;
GRANT TABLE ENGINE ON Distributed TO authz_retention_cluster;
GRANT TABLE ENGINE ON ReplicatedMergeTree TO authz_retention_cluster;

CREATE ROLE IF NOT EXISTS authz_migrator_cluster;
GRANT CREATE DATABASE ON * TO authz_migrator_cluster;
GRANT SELECT ON audit_log_local TO authz_migrator_cluster;
GRANT SELECT, INSERT ON activity_hourly_local TO authz_migrator_cluster;
GRANT SELECT, INSERT, ALTER DELETE ON baseline_daily_local TO authz_migrator_cluster;
GRANT SELECT ON system.clusters TO authz_migrator_cluster;
GRANT CLUSTER ON *.* TO authz_migrator_cluster;
GRANT TABLE ENGINE ON Distributed TO authz_migrator_cluster;
GRANT TABLE ENGINE ON ReplicatedAggregatingMergeTree TO authz_migrator_cluster;
GRANT TABLE ENGINE ON ReplicatedMergeTree TO authz_migrator_cluster;
GRANT TABLE ENGINE ON ReplicatedReplacingMergeTree TO authz_migrator_cluster;

GRANT authz_migrator_cluster TO migrator;
GRANT authz_receiver_cluster TO receiver;
GRANT authz_log_cluster, authz_watch_cluster TO watch;
GRANT authz_log_cluster, authz_proof_cluster, authz_usual_cluster TO reader;
GRANT authz_log_cluster, authz_proof_cluster TO auditor;
GRANT authz_log_cluster, authz_usual_cluster TO grafana;
GRANT authz_log_cluster, authz_proof_cluster, authz_retention_cluster TO retention;
