# Packages of Debian's archive, fetched without changing the system's package lists. To be sourced by bash with `set -euo pipefail`.
#
# debian_lists WORK KIND     reads the archive's lists (KIND: deb or deb-src) into WORK, which is made anew, and goes there
# debian_source NAME [VERSION...]   downloads NAME's source package of the first of these versions, or else of the newest, that is there
# debian_binary NAME...      downloads packages

debian_lists() {
  local work=$1 kind=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  rm -rf "$work"
  mkdir -p "$work"/{lists/partial,cache/archives/partial}
  # Not those of other archives that the machine may use.
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | sort -u |
    awk -v kind="$kind" -v k="$keyring" \
      '$2 ~ /^[a-z]+(-updates|-security)?$/ { print kind " [signed-by=" k "] " $1 " " $2 " main" }' > "$work/sources.list"
  debian_options=(-qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/sources.list"
    -o Dir::Etc::sourceparts=- -o APT::Sandbox::User= -o Acquire::Languages=none)
  apt-get "${debian_options[@]}" update
  cd "$work"
}

debian_source() {
  local name=$1 version
  shift
  for version in "$@" $(apt-cache "${debian_options[@]}" showsrc "$name" | awk '/^Version:/ { print $2 }' | sort -rV); do
    apt-get "${debian_options[@]}" --download-only source "$name=$version" && return
    echo "no source of $name $version on the mirror" >&2
  done
  return 1
}

debian_binary() {
  apt-get "${debian_options[@]}" download "$@"
}
