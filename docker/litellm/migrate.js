// Lays the proxy's tables: what `prisma migrate deploy` does, with the same record of it in `_prisma_migrations`.
//
//     DATABASE_URL=postgresql://… node migrate.js
//
// Each migration is applied once, in the order of their names. Several processes may try at once: one at a time does it.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const { Client } = require('pg');

const FOLDER = path.join(__dirname, 'migrations');
const LOCK = 72707369; // the advisory lock that Prisma's own engine takes for this
const IN_TRANSACTION = '25001';
const RECORD = `CREATE TABLE IF NOT EXISTS _prisma_migrations (
  id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL, finished_at timestamptz,
  migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
  started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count int NOT NULL DEFAULT 0)`;

// Parameters that only Prisma knows would be refused by the server.
function plain(url) {
  const parsed = new URL(url);
  for (const name of ['schema', 'connection_limit', 'pool_timeout', 'pgbouncer', 'statement_cache_size']) {
    parsed.searchParams.delete(name);
  }
  return parsed.toString();
}

async function apply(client, sql) {
  try {
    await client.query(sql);
  } catch (error) {
    if (error.code !== IN_TRANSACTION) throw error;
    // Several statements at once are one transaction, and an index that is made concurrently must not be in one.
    for (const statement of sql.split(/;\s*\n/)) if (statement.trim()) await client.query(statement);
  }
}

async function main() {
  const client = new Client({ connectionString: plain(process.env.DATABASE_URL) });
  await client.connect();
  try {
    await client.query('SELECT pg_advisory_lock($1)', [LOCK]);
    await client.query(RECORD);
    const { rows } = await client.query('SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NOT NULL');
    const done = new Set(rows.map((row) => row.migration_name));
    const names = fs.readdirSync(FOLDER).sort();
    let applied = 0;
    for (const name of names) {
      const file = path.join(FOLDER, name, 'migration.sql');
      if (done.has(name) || !fs.existsSync(file)) continue;
      const sql = fs.readFileSync(file, 'utf8');
      await apply(client, sql);
      const checksum = crypto.createHash('sha256').update(sql).digest('hex');
      await client.query(
        `INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count)
         VALUES ($1, $2, now(), $3, 1)`,
        [crypto.randomUUID(), checksum, name],
      );
      applied += 1;
    }
    console.log(`${applied} migrations applied, ${done.size} were`);
  } finally {
    await client.end();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
