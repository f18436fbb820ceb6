#!/bin/sh
# Bring Temporal's two databases to this release's tables. Run again it changes nothing; a new release's tables are added.
set -eu

lay() {
  # Both are refused where they were done before: the update tells whether the tables are in order.
  temporal-sql-tool --db "$1" create || true
  temporal-sql-tool --db "$1" setup-schema -v 0.0 || true
  temporal-sql-tool --db "$1" update-schema -d "/etc/temporal/schema/postgresql/v12/$2/versioned"
}

lay temporal temporal
lay temporal_visibility visibility
