#!/bin/sh
# packages.sh ENGINE VENV OUT: what the image's Python needs, into VENV; what lies outside of it, into OUT.
set -eu
engine=$1 venv=$2 out=$3
here=$(dirname "$0")/hailort

fail() {
    echo "Dockerfile.runtime: $*" >&2
    exit 1
}

mkdir -p "$out/usr/local/bin" "$out/etc/hailo-pipeline" "$out/models"
case $engine in
emulator)
    python3 scripts/setup_venv.py --venv "$venv" --lock locks/runtime.txt
    ;;
hailo)
    arch=$(dpkg --print-architecture)
    machine=$(uname -m)
    wheel=$(find "$here" -name "hailort-*-cp311-*_$machine.whl")
    package=$(find "$here" -name "hailort_*_$arch.deb")
    [ -n "$wheel" ] || fail "ENGINE=hailo needs HailoRT's Python wheel, hailort-<version>-cp311-cp311-linux_$machine.whl," \
        "in deploy/image/hailort/ (Hailo's Developer Zone; the version of the host's driver)"
    [ -n "$package" ] || fail "ENGINE=hailo needs HailoRT's library, hailort_<version>_$arch.deb," \
        "in deploy/image/hailort/ (Hailo's Developer Zone; the version of the host's driver)"
    [ "$(echo "$wheel" | wc -l)" = 1 ] && [ "$(echo "$package" | wc -l)" = 1 ] ||
        fail "deploy/image/hailort/ holds several versions: leave the one of the host's driver"
    version=$(basename "$wheel" | cut -d- -f2)
    [ "$version" = "$(basename "$package" | cut -d_ -f2)" ] ||
        fail "$(basename "$wheel") and $(basename "$package") are two versions of HailoRT: they must be one"
    python3 scripts/setup_venv.py --venv "$venv" --lock locks/runtime-hailo.txt
    "$venv/bin/pip" install --quiet --no-cache-dir "$wheel"
    # Its scripts install a system service and udev rules, which are the host's: the files alone.
    dpkg-deb --extract "$package" "$out"
    ;;
*) fail "ENGINE=$engine is none of emulator, hailo" ;;
esac

# Nothing is installed into the image later: pip goes, and so do packages' own tests.
"$venv/bin/pip" uninstall --quiet --yes pip setuptools 2>/dev/null || "$venv/bin/pip" uninstall --quiet --yes pip
rm -f "$venv"/bin/pip* "$venv"/bin/activate* "$venv"/bin/Activate.ps1
find "$venv/lib" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +

printf '#!/bin/sh\nexec /opt/runtime/bin/python -m runtime.cli "$@"\n' >"$out/usr/local/bin/releasectl"
chmod 755 "$out/usr/local/bin/releasectl"
