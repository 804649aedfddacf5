#!/usr/bin/env bash
# Copies the installed PostgreSQL into DEST, with the distribution's relative layout, so that an extension can be
# installed and tried there without touching /usr.
# usage: tests/pg-root.sh DEST [MAJOR]   -> DEST/usr/lib/postgresql/MAJOR/bin/{postgres,initdb,pg_config,...}
set -euo pipefail
dest=$1 major=${2:-15}
lib=/usr/lib/postgresql/$major share=/usr/share/postgresql/$major
if [ ! -x "$lib/bin/postgres" ]; then
  echo "PostgreSQL $major is not installed in $lib: run 'make setup'" >&2
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
