#!/usr/bin/env bash
# test_image.sh ROOT [PYTEST ARGUMENTS...]: the runtime's tests in an image, with the image's own Python, packages
# and runtime. ROOT is its file system, as `docker export` of a container writes it, unpacked; nothing is changed
# in it. PYTHON: one with pip, for the tests' packages. Needs bubblewrap, and for another machine's image an
# emulator that the kernel knows (Debian: qemu-user-static and binfmt-support); then it takes half an hour.
set -euo pipefail

root=$(realpath "${1:?usage: test_image.sh ROOT [PYTEST ARGUMENTS...]}")
shift
cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# No /sys: an emulator would show this machine's, and ONNX Runtime on arm64 ends in it with a segmentation fault.
inside() {
    bwrap --ro-bind "$root" / --proc /proc --dev /dev --tmpfs /tmp --tmpfs /dev/shm --tmpfs /run --tmpfs /srv \
        --tmpfs /mnt --dir /mnt/packages "$@"
}

machine=$(inside uname -m)
echo "test_image.sh: $machine, $(inside /opt/runtime/bin/python --version)"
"${PYTHON:-.venv/bin/python}" -m pip install --quiet --disable-pip-version-check --target "$work/packages" \
    --only-binary :all: --python-version 3.11 --implementation cp --platform "manylinux2014_$machine" \
    --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" \
    --require-hashes -r locks/runtime-test.txt

# The runtime that is tested is the image's; from here come tests, and what they read.
sources=()
for name in pyproject.toml compose.yaml tests bench docs deploy locks scripts sample Makefile; do
    [ ! -e "$name" ] || sources+=(--ro-bind "$here/$name" "/srv/$name")
done
case " $*" in
*" tests/"*) ;;
*) set -- tests/contract tests/runtime tests/conformance/test_engine.py "$@" ;;
esac
inside --ro-bind "$work/packages" /mnt/packages --ro-bind "$root/app/runtime" /srv/runtime "${sources[@]}" \
    --unshare-user --unshare-pid --unshare-ipc --uid 1000 --gid 1000 --die-with-parent --clearenv \
    --setenv PATH /opt/runtime/bin:/usr/local/bin:/usr/bin:/bin --setenv PYTHONPATH /srv:/mnt/packages \
    --setenv PYTHONDONTWRITEBYTECODE 1 --setenv HOME /tmp --chdir /srv \
    python -m pytest -p no:cacheprovider -o timeout=900 -m "not slow and not build" "$@"
