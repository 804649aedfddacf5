#!/usr/bin/env bash
# Copies an installed PostgreSQL into DEST, with Debian's relative layout, which it must have, so that an extension can
# be installed and tried there without touching it.
# usage: tests/pg-root.sh DEST [PG_CONFIG]   -> DEST/usr/lib/postgresql/MAJOR/bin/{postgres,initdb,pg_config,...}
set -euo pipefail
dest=$1 config=${2:-/usr/lib/postgresql/15/bin/pg_config}
bin=$("$config" --bindir) share=$("$config" --sharedir)
lib=$(dirname "$bin") major=$("$config" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
if [ ! -x "$bin/postgres" ]; then
  echo "there is no PostgreSQL server in $bin: run 'make setup'" >&2
  exit 1
fi
if [ "$("$config" --pkglibdir)" != "$lib/lib" ]; then
  echo "$config: not Debian's layout: the library folder is not $lib/lib" >&2
  exit 1
fi
mkdir -p "$dest/usr/lib/postgresql/$major" "$dest/usr/share/postgresql/$major"
# Links are followed: Debian keeps some of the share files below /etc and /usr/share/postgresql-common.
for part in bin lib; do
  mkdir -p "$dest/usr/lib/postgresql/$major/$part"
  find "$lib/$part" -mindepth 1 -maxdepth 1 ! -name bitcode ! -name pgxs -exec cp -rL {} "$dest/usr/lib/postgresql/$major/$part/" \;
done
find "$share" -mindepth 1 -maxdepth 1 ! -name man -exec cp -rL {} "$dest/usr/share/postgresql/$major/" \;
# A pg_tde of the system's must not stand in for the one under test.
rm -f "$dest/usr/lib/postgresql/$major/lib/pg_tde.so" "$dest/usr/share/postgresql/$major/extension/"pg_tde*
chmod -R a+rX "$dest"
