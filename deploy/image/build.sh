#!/bin/sh
# build.sh [TAG]: build Dockerfile.runtime with docker, podman or buildah, whichever is there. ENGINE, PLATFORM.
# Without TAG, compose.yaml finds what was built.
set -eu
cd "$(dirname "$0")/../.."
engine=${ENGINE:-emulator}
tag=${1:-hailo-inference:$engine}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# What is built: the tree of the last commit, and whether something was changed since.
source=$(git rev-parse 'HEAD^{tree}' 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || source=$source-changed
for tool in ${BUILDER:-docker podman buildah}; do
    command -v "$tool" >/dev/null || continue
    verb=build
    [ "$tool" = buildah ] && verb="bud --format docker"
    # Podman and buildah leave HEALTHCHECK out of their own format.
    [ "$tool" = podman ] && verb="build --format docker"
    # shellcheck disable=SC2086
    exec "$tool" $verb ${PLATFORM:+--platform "$PLATFORM"} -f Dockerfile.runtime -t "$tag" \
        --build-arg ENGINE="$engine" --build-arg VERSION="$version" --build-arg SOURCE="$source" .
done
echo "make image: none of docker, podman, buildah is here: install one (Debian: podman)" >&2
exit 1
