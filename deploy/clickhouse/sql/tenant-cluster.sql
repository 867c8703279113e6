-- tenant.sql for a database that was made for a cluster. The policies on records are of the tables
-- that keep the rows, and of those alone: ClickHouse refuses to ask a Distributed table that has one.

CREATE USER IF NOT EXISTS reader_lakeside IDENTIFIED WITH sha256_hash BY {reader_lakeside:String} SETTINGS PROFILE authz_asking;
GRANT authz_log, authz_log_cluster, authz_tenant, authz_tenant_cluster, authz_usual, authz_usual_cluster TO reader_lakeside;

CREATE ROW POLICY OR REPLACE reader_lakeside ON audit_log_local FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON activity_hourly_local FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON baseline_daily_local FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON feed_loads FOR SELECT USING 0 TO reader_lakeside;

CREATE QUOTA OR REPLACE reader_lakeside KEYED BY user_name FOR INTERVAL 1 hour
  MAX queries = 20000, errors = 1000, execution_time = 3600 TO reader_lakeside;
