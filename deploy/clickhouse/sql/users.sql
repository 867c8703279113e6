-- Users. Passwords come by reference, as SHA-256 in hexadecimal: README.md says how to make them.
-- Safe to repeat; a password is changed by ALTER USER.

CREATE USER IF NOT EXISTS migrator IDENTIFIED WITH sha256_hash BY {migrator:String} SETTINGS PROFILE authz_logged;
GRANT authz_migrator TO migrator;

CREATE USER IF NOT EXISTS receiver IDENTIFIED WITH sha256_hash BY {receiver:String} SETTINGS PROFILE authz_writing;
GRANT authz_receiver TO receiver;
CREATE ROW POLICY OR REPLACE receiver ON system.processes FOR SELECT USING user = currentUser() TO receiver;

CREATE USER IF NOT EXISTS watch IDENTIFIED WITH sha256_hash BY {watch:String} SETTINGS PROFILE authz_reading;
GRANT authz_log, authz_reasons, authz_watch TO watch;

CREATE USER IF NOT EXISTS feeds IDENTIFIED WITH sha256_hash BY {feeds:String} SETTINGS PROFILE authz_writing;
GRANT authz_feeds TO feeds;

CREATE USER IF NOT EXISTS reader IDENTIFIED WITH sha256_hash BY {reader:String} SETTINGS PROFILE authz_reading;
GRANT authz_log, authz_proof, authz_reasons, authz_sizes, authz_usual TO reader;

CREATE USER IF NOT EXISTS auditor IDENTIFIED WITH sha256_hash BY {auditor:String} SETTINGS PROFILE authz_reading;
GRANT authz_log, authz_proof TO auditor;

CREATE USER IF NOT EXISTS grafana IDENTIFIED WITH sha256_hash BY {grafana:String} SETTINGS PROFILE authz_asking;
GRANT authz_log, authz_sizes, authz_usual TO grafana;

CREATE USER IF NOT EXISTS retention IDENTIFIED WITH sha256_hash BY {retention:String} SETTINGS PROFILE authz_logged;
GRANT authz_log, authz_proof, authz_retention TO retention;

CREATE USER IF NOT EXISTS backup IDENTIFIED WITH sha256_hash BY {backup:String} SETTINGS PROFILE authz_reading;
GRANT authz_backup TO backup;

-- What each has asked in an hour is counted (system.quotas_usage); Grafana may ask so much.
CREATE QUOTA OR REPLACE authz_counted KEYED BY user_name FOR INTERVAL 1 hour TRACKING ONLY
  TO auditor, backup, feeds, migrator, reader, receiver, retention, watch;
CREATE QUOTA OR REPLACE authz_asking KEYED BY user_name FOR INTERVAL 1 hour
  MAX queries = 20000, errors = 1000, execution_time = 3600 TO grafana;
