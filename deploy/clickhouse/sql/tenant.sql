-- A reader of one tenant, here lakeside: put the tenant's name, as records have it, in its place.
-- The policies hold in every view too, and in the aggregates. A record without a tenant is nobody's
-- but the house's: notices, and requests of whom nobody came to know. The operator's feeds tell of
-- all tenants, so for this reader there are none.

CREATE USER IF NOT EXISTS reader_lakeside IDENTIFIED WITH sha256_hash BY {reader_lakeside:String} SETTINGS PROFILE authz_asking;
GRANT authz_log, authz_tenant, authz_usual TO reader_lakeside;

CREATE ROW POLICY OR REPLACE reader_lakeside ON audit_log FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON activity_hourly FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON baseline_daily FOR SELECT USING tenant = 'lakeside' TO reader_lakeside;
CREATE ROW POLICY OR REPLACE reader_lakeside ON feed_loads FOR SELECT USING 0 TO reader_lakeside;

CREATE QUOTA OR REPLACE reader_lakeside KEYED BY user_name FOR INTERVAL 1 hour
  MAX queries = 20000, errors = 1000, execution_time = 3600 TO reader_lakeside;
