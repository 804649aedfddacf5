#!/usr/bin/env bash
# Fetches the source package of the installed PostgreSQL and unpacks its regression tests into DEST, which must be
# absent; another version of the same major is taken where the mirror no longer has the installed one.
# Nothing of the system's package lists is changed.
# usage: tests/regress-source.sh DEST [MAJOR]   -> DEST/src/test/regress/{sql,expected,data,parallel_schedule,...}
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"
dest=$1 major=${2:-15}
debian_lists "$dest.work" deb-src
mkdir unpacked
debian_source "postgresql-$major" $(dpkg-query -W -f '${Version}' "postgresql-$major")
tar -xf "postgresql-${major}"_*.orig.tar.* -C unpacked --strip-components=1 --wildcards '*/src/test/regress' '*/src/test/isolation'
chmod -R a+rX unpacked
mv unpacked "$dest"
rm -rf "$dest.work"
