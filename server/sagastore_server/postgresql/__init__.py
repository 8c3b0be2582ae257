"""The storage contract on PostgreSQL. The only room that knows asyncpg."""
