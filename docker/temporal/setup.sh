#!/bin/sh
# Have the namespace and the search attributes that the service uses. Run again it changes nothing.
set -eu

# At most about two minutes.
retry() {
  left=60
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { echo "gave up: $*" >&2; exit 1; }
    sleep 2
  done
}

have_namespace() {
  temporal operator namespace describe -n "$TEMPORAL_NAMESPACE" >/dev/null 2>&1 ||
    temporal operator namespace create -n "$TEMPORAL_NAMESPACE" --retention 72h
}

have_attributes() {
  for name in UserId ProjectId TaskState; do
    if ! temporal operator search-attribute list -n "$TEMPORAL_NAMESPACE" | grep -qw "$name"; then
      temporal operator search-attribute create -n "$TEMPORAL_NAMESPACE" --name "$name" --type Keyword || return 1
    fi
  done
}

# The server keeps what it knows of them for a while: a workflow that began before it knows better would be refused.
know_attributes() {
  temporal workflow count -n "$TEMPORAL_NAMESPACE" --query "UserId = '0' AND ProjectId = '0' AND TaskState = '0'" >/dev/null
}

retry temporal operator cluster health
retry have_namespace
retry have_attributes
retry know_attributes
