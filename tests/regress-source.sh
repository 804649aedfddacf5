#!/usr/bin/env bash
# Fetches the source package of the installed PostgreSQL and unpacks its regression tests into DEST, which must be
# absent; an older version of the same major is taken where the mirror no longer has the installed one.
# Nothing of the system's package lists is changed.
# usage: tests/regress-source.sh DEST [MAJOR]   -> DEST/src/test/regress/{sql,expected,data,parallel_schedule,...}
set -euo pipefail
dest=$1 major=${2:-15}
work=$dest.work
rm -rf "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial,unpacked}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | sort -u |
  awk -v k="$keyring" '$2 ~ /^[a-z]+(-updates|-security)?$/ { print "deb-src [signed-by=" k "] " $1 " " $2 " main" }' > "$work/sources.list"
options=(-qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/sources.list"
  -o Dir::Etc::sourceparts=- -o APT::Sandbox::User= -o Acquire::Languages=none)
apt-get "${options[@]}" update
cd "$work"
for version in $(dpkg-query -W -f '${Version}' "postgresql-$major") \
  $(apt-cache "${options[@]}" showsrc "postgresql-$major" | awk '/^Version:/ { print $2 }'); do
  apt-get "${options[@]}" --download-only source "postgresql-$major=$version" && break
  echo "no source of $version on the mirror" >&2
done
tar -xf "postgresql-${major}"_*.orig.tar.* -C unpacked --strip-components=1 --wildcards '*/src/test/regress' '*/src/test/isolation'
chmod -R a+rX unpacked
mv unpacked "$dest"
rm -rf "$work"
