#!/usr/bin/env bash
# Brings what the examples in JavaScript and Java need into DEST, unless the machine has it. Exit code 3, with the reason: it cannot be had.
# usage: tests/sqlite-runtimes.sh node DEST   prints a Node.js that has node:sqlite: the system's, or the one in npm's packages
#        tests/sqlite-runtimes.sh java DEST   prints the options that let `java` find Debian's sqlite-jdbc
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"
kind=$1 dest=$2
none() { echo "$1" >&2; exit 3; }
mkdir -p "$dest"
exec 9> "$dest/lock"
flock 9
case $kind in
  node)
    # The first release that takes URIs.
    package=node-linux-$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')@24.21.0
    enough='const [major, minor] = process.versions.node.split(".").map(Number); require("node:sqlite"); process.exit(major > 22 || major === 22 && minor >= 15 ? 0 : 1)'
    for node in "$(command -v node || true)" "$dest/node/node_modules/${package%@*}/bin/node"; do
      if [ -x "$node" ] && "$node" --no-warnings -e "$enough" 2> /dev/null; then echo "$node"; exit; fi
    done
    command -v npm > /dev/null || none "no Node.js with node:sqlite, and no npm to get one"
    npm install --silent --no-audit --no-fund --prefix "$dest/node" "$package" >&2 || none "npm cannot get $package"
    "$node" --no-warnings -e "$enough"
    echo "$node" ;;
  java)
    command -v javac > /dev/null || none "no Java development kit (default-jdk-headless)"
    root=/
    if [ ! -f /usr/share/java/sqlite-jdbc.jar ]; then
      root=$dest/java
      if [ ! -f "$root/usr/share/java/sqlite-jdbc.jar" ]; then
        (debian_lists "$dest/java.work" deb && debian_binary libxerial-sqlite-jdbc-java libxerial-sqlite-jdbc-jni) >&2 ||
          none "Debian's packages of sqlite-jdbc cannot be had"
        rm -rf "$root"
        mkdir "$dest/java.work/unpacked"
        for deb in "$dest"/java.work/*.deb; do dpkg-deb -x "$deb" "$dest/java.work/unpacked"; done
        mv "$dest/java.work/unpacked" "$root"
        rm -rf "$dest/java.work"
      fi
    fi
    jni=$(dirname "$(find "${root%/}"/usr/lib/*/jni -name libsqlitejdbc.so | head -1)")
    echo "-Djava.library.path=$jni -cp ${root%/}/usr/share/java/sqlite-jdbc.jar" ;;
esac
