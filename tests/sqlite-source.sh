#!/usr/bin/env bash
# Fetches Debian's source package of SQLite (of the installed version where the mirror has it) and unpacks it into DEST,
# which must be absent. Nothing of the system's package lists is changed.
# usage: tests/sqlite-source.sh DEST   -> DEST/{configure,src,test,ext,tool,mptest,...}
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"
dest=$1
debian_lists "$dest.work" deb-src
mkdir unpacked
debian_source sqlite3 $(dpkg-query -W -f '${source:Version}' libsqlite3-0 2>/dev/null || true)
tar -xf sqlite3_*.orig.tar.* -C unpacked --strip-components=1
# Debian's security fixes; what only concerns its packaging may fail to apply.
tar -xf sqlite3_*.debian.tar.* -C unpacked
if [ -f unpacked/debian/patches/series ]; then
  while read -r patch _; do
    case $patch in ''|'#'*) continue ;; esac
    (cd unpacked && patch -p1 -s < "debian/patches/$patch")
  done < unpacked/debian/patches/series
fi
chmod -R a+rX unpacked
mv unpacked "$dest"
rm -rf "$dest.work"
