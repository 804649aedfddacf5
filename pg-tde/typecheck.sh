#!/usr/bin/env bash
# Type-checks the extension for PostgreSQL versions whose headers are not installed, with the bindings that pgrx ships
# for its documentation. usage: typecheck.sh 16 17 18
set -euo pipefail
if [ "${TYPECHECK_AS_WRAPPER:-}" = 1 ]; then # run by cargo in place of rustc: only one crate knows those bindings
  for argument in "$@"; do
    [ "$argument" = pgrx_pg_sys ] && exec "$@" --cfg docsrs
  done
  exec "$@"
fi
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
export DOCS_RS=1 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/typecheck
export TYPECHECK_AS_WRAPPER=1 RUSTC_WRAPPER=$here/typecheck.sh
for version in "$@"; do
  echo "type-checking pg-tde for PostgreSQL $version"
  cargo check --quiet --locked -p pg-tde --lib --no-default-features --features "pg$version"
done
