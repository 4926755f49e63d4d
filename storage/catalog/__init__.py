"""The DuckDB catalog: connections, its lock, migrations, views and questions."""
