-- Settings profiles: what a user's queries may take. Safe to repeat.
-- authz sets settings of its own with its queries, so readonly is 2, or 0 for who writes.

-- Nobody keeps a query out of the log of queries.
CREATE SETTINGS PROFILE OR REPLACE authz_logged SETTINGS
  log_queries = 1 CONST, log_queries_min_type = 'QUERY_START' CONST,
  log_queries_min_query_duration_ms = 0 CONST, log_queries_probability = 1 CONST;

-- Nothing stops the receiver but what it may not do. (Who migrates or lets records expire has
-- authz_logged alone: both change tables, for as long as it takes.)
CREATE SETTINGS PROFILE OR REPLACE authz_writing SETTINGS INHERIT authz_logged, allow_ddl = 0 CONST;

-- Commands, the console and reports: exports and verification of years take hours, each of their
-- queries seconds.
CREATE SETTINGS PROFILE OR REPLACE authz_reading SETTINGS INHERIT authz_logged,
  readonly = 2, allow_ddl = 0 CONST, max_execution_time = 600 MIN 1 MAX 3600,
  max_memory_usage = 8000000000 MIN 1 MAX 8000000000, max_concurrent_queries_for_user = 50 CONST;

-- Whoever asks what they like: Grafana, a tenant.
CREATE SETTINGS PROFILE OR REPLACE authz_asking SETTINGS INHERIT authz_logged,
  readonly = 2, allow_ddl = 0 CONST, max_execution_time = 30 MIN 1 MAX 60,
  max_memory_usage = 4000000000 MIN 1 MAX 4000000000,
  max_concurrent_queries_for_user = 20 CONST;
