"""What is REMEMBERED: Postgres tables, repositories, the event log, migrations."""
