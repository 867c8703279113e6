-- Roles: what each process may do, and nothing else. Tables without a database are those of the
-- session's: clickhouse-client --database authz --queries-file roles.sql
-- Safe to repeat. What was granted before stays; README.md has a query for what is too much.

-- The log's rows, in the table and in its views, and up to where they are signed for.
CREATE ROLE IF NOT EXISTS authz_log;
GRANT SELECT ON audit_log TO authz_log;
GRANT SELECT ON decisions TO authz_log;
GRANT SELECT ON accesses TO authz_log;
GRANT SELECT ON disclosures TO authz_log;
GRANT SELECT ON findings TO authz_log;
GRANT SELECT ON notices TO authz_log;
GRANT SELECT ON requests TO authz_log;
GRANT SELECT ON checkpoints TO authz_log;
GRANT SELECT ON schema_versions TO authz_log;

-- What proofs are made of, what records carry along, and whether each table is what it should be.
CREATE ROLE IF NOT EXISTS authz_proof;
GRANT SELECT ON tiles TO authz_proof;
GRANT SELECT ON policies TO authz_proof;
GRANT SELECT ON sealed_originals TO authz_proof;
GRANT SHOW TABLES, SHOW COLUMNS ON * TO authz_proof;
GRANT SELECT ON system.detached_parts TO authz_proof;

-- What people usually do.
CREATE ROLE IF NOT EXISTS authz_usual;
GRANT SELECT ON activity_hourly TO authz_usual;
GRANT SELECT ON baseline_daily TO authz_usual;
GRANT SELECT ON baselines TO authz_usual;

-- The reasons there are to look, as the operator's feeds tell them.
CREATE ROLE IF NOT EXISTS authz_reasons;
GRANT SELECT ON feed_loads TO authz_reasons;
GRANT SELECT ON feed_people TO authz_reasons;
GRANT SELECT ON feed_reasons TO authz_reasons;

-- What the tables take on disk.
CREATE ROLE IF NOT EXISTS authz_sizes;
GRANT SELECT ON system.parts TO authz_sizes;

-- authz serve receiver: inserts, reads back, and stops an insert of its own that hangs.
CREATE ROLE IF NOT EXISTS authz_receiver;
GRANT SELECT, INSERT ON audit_log TO authz_receiver;
GRANT SELECT, INSERT ON sealed_originals TO authz_receiver;
GRANT SELECT, INSERT ON policies TO authz_receiver;
GRANT INSERT ON tiles TO authz_receiver;
GRANT SELECT, INSERT ON checkpoints TO authz_receiver;
GRANT SELECT, INSERT ON leases TO authz_receiver;
GRANT SELECT ON schema_versions TO authz_receiver;
GRANT SELECT ON system.processes TO authz_receiver;

-- authz watch, which has authz_log and authz_reasons too. It puts on record who asks past authz.
CREATE ROLE IF NOT EXISTS authz_watch;
GRANT SELECT ON feed_patients TO authz_watch;
GRANT SELECT ON system.query_log TO authz_watch;

-- authz feeds load.
CREATE ROLE IF NOT EXISTS authz_feeds;
GRANT SELECT, INSERT ON feed_loads TO authz_feeds;
GRANT SELECT, INSERT ON feed_people TO authz_feeds;
GRANT SELECT, INSERT ON feed_patients TO authz_feeds;
GRANT SELECT, INSERT ON feed_reasons TO authz_feeds;
GRANT SELECT ON schema_versions TO authz_feeds;

-- authz retention apply, which has authz_log and authz_proof too.
CREATE ROLE IF NOT EXISTS authz_retention;
GRANT INSERT, ALTER DELETE ON audit_log TO authz_retention;
GRANT INSERT, ALTER DELETE ON sealed_originals TO authz_retention;
GRANT SELECT, INSERT, CREATE TABLE, DROP TABLE ON expiring_* TO authz_retention;
GRANT TABLE ENGINE ON MergeTree TO authz_retention;

-- authz migrate. The materialized views that feed the aggregates run with these rights.
CREATE ROLE IF NOT EXISTS authz_migrator;
GRANT ALTER ADD COLUMN, ALTER ADD INDEX, ALTER DROP INDEX, ALTER MATERIALIZE INDEX, ALTER ADD PROJECTION, ALTER MATERIALIZE PROJECTION, ALTER SETTINGS, CREATE TABLE, CREATE VIEW, DROP VIEW ON * TO authz_migrator;
GRANT SELECT ON audit_log TO authz_migrator;
GRANT SELECT, INSERT ON activity_hourly TO authz_migrator;
GRANT SELECT, INSERT, ALTER DELETE ON baseline_daily TO authz_migrator;
GRANT SELECT, INSERT ON schema_versions TO authz_migrator;
GRANT TABLE ENGINE ON AggregatingMergeTree TO authz_migrator;
GRANT TABLE ENGINE ON MergeTree TO authz_migrator;
GRANT TABLE ENGINE ON ReplacingMergeTree TO authz_migrator;

-- Who reads one tenant's records, by row policies of its own (tenant.sql), and proves them.
CREATE ROLE IF NOT EXISTS authz_tenant;
GRANT SELECT ON tiles TO authz_tenant;
GRANT SELECT ON feed_loads TO authz_tenant;

-- BACKUP, whole or incremental, to the disk that config.d/backups.xml allows. No RESTORE.
CREATE ROLE IF NOT EXISTS authz_backup;
GRANT BACKUP ON * TO authz_backup;
GRANT READ, WRITE ON DISK TO authz_backup;
