#!/usr/bin/env bash
# Renew every lock file from pyproject.toml and the .in files: newest versions, exact pins, hashes for
# every platform and Python 3.11 to 3.13. All are replaced, or on any failure none.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -x .venv-lock/bin/pip ] || "$python" -m venv .venv-lock
.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # compile NAME ARGUMENTS...: one lock file; --no-strip-extras because pip's hash mode wants them
    local name=$1
    shift
    echo "locks/$name"
    .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --no-strip-extras "$@" --output-file "$work/$name" >"$work/log"
}

compile build.txt --extra build pyproject.toml locks/torch-requires.in
compile runtime.txt --extra runtime pyproject.toml -c "$work/build.txt"
compile dev.txt --extra dev pyproject.toml -c "$work/build.txt" -c "$work/runtime.txt"
compile runtime-test.txt locks/runtime-test.in -c "$work/runtime.txt" -c "$work/dev.txt"
compile bench.txt locks/bench.in -c "$work/runtime.txt"

# The oldest numpy that the runtime accepts; everything else as in runtime.txt.
awk '/^[^ ]/ { keep = !/^numpy==/ } keep' "$work/runtime.txt" >"$work/without-numpy.txt"
echo 'numpy>=1.26,<2' >"$work/numpy1.in"
compile runtime-numpy1.txt --extra runtime pyproject.toml "$work/numpy1.in" -c "$work/without-numpy.txt"

# On a chip: without onnxruntime, with the numpy that HailoRT takes, and what its package needs besides.
compile runtime-hailo.txt --extra hailo pyproject.toml locks/hailort-requires.in -c "$work/runtime-numpy1.txt"

mv "$work"/{build,runtime,dev,runtime-test,bench,runtime-numpy1,runtime-hailo}.txt locks/
