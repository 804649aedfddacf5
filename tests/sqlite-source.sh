#!/usr/bin/env bash
# Fetches Debian's source package of SQLite (of the installed version where the mirror has it) and unpacks it into DEST,
# which must be absent. Nothing of the system's package lists is changed.
# usage: tests/sqlite-source.sh DEST   -> DEST/{configure,src,test,ext,tool,mptest,...}
set -euo pipefail
dest=$1
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
installed=$(dpkg-query -W -f '${source:Version}' libsqlite3-0 2>/dev/null || true)
for version in $installed $(apt-cache "${options[@]}" showsrc sqlite3 | awk '/^Version:/ { print $2 }' | sort -rV); do
  apt-get "${options[@]}" --download-only source "sqlite3=$version" && break
  echo "no source of $version on the mirror" >&2
done
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
rm -rf "$work"
