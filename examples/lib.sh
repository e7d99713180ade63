# Sourced by the examples and tests: what they need of the machine, made where it is missing.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
xbuild=${XBUILD:-$target/release/xbuild}

# Installs Debian packages that are not there.
need() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}" >&2
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

# The program, built in release mode.
need_xbuild() {
  [ -n "${XBUILD:-}" ] || (cd "$top" && cargo build --release --quiet)
}

# The image `busybox`, made from Debian's static busybox.
need_busybox() {
  "$xbuild" inspect busybox >/dev/null 2>&1 && return
  need busybox-static
  local context
  context=$(mktemp -d)
  cp "$(command -v busybox)" "$context/busybox"
  "$xbuild" --quiet -t busybox -f "$top/examples/base/busybox/Dockerfile" "$context" >/dev/null
  rm -rf "$context"
}

# The image `debian`, made by mmdebstrap from the archive that this machine uses.
need_debian() {
  "$xbuild" inspect debian >/dev/null 2>&1 && return
  need mmdebstrap
  local context codename
  context=$(mktemp -d)
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  local sources=()
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -s "$file" ] && sources=("$file") && break
  done
  mmdebstrap --quiet --variant=apt --include=ca-certificates "$codename" "$context/debian.tar" "${sources[@]}"
  "$xbuild" --quiet -t debian -f "$top/examples/base/debian/Dockerfile" "$context" >/dev/null
  rm -rf "$context"
}
