-- Creates two roles: one creates and upgrades the schema, the other one serves and cannot change
-- table definitions. Run it as a role that may create roles, in the database of SagaStore.
-- Set passwords afterwards (\password in psql), or use certificates.

CREATE ROLE sagastore_owner LOGIN;
CREATE ROLE sagastore_server LOGIN;

CREATE SCHEMA sagastore AUTHORIZATION sagastore_owner;
ALTER ROLE sagastore_owner SET search_path = sagastore;
ALTER ROLE sagastore_server SET search_path = sagastore;

GRANT USAGE ON SCHEMA sagastore TO sagastore_server;
ALTER DEFAULT PRIVILEGES FOR ROLE sagastore_owner IN SCHEMA sagastore
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO sagastore_server;
ALTER DEFAULT PRIVILEGES FOR ROLE sagastore_owner IN SCHEMA sagastore
    GRANT USAGE ON SEQUENCES TO sagastore_server;
