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
    [ "$version" = "$(basename "$package" | cut -d_ -f2 | cut -d- -f1)" ] ||
        fail "$(basename "$wheel") and $(basename "$package") are two versions of HailoRT: they must be one"
    # By name, and into a folder of its own first: its service and udev rules are the host's, and its folder `lib`
    # would stand against the image's link of that name (BuildKit refuses that, other builders replace the link).
    dpkg-deb --extract "$package" "$out.deb"
    library=$(cd "$out.deb" && find usr/lib -name "libhailort.so.$version" 2>/dev/null | head -n 1)
    [ -n "$library" ] || fail "$(basename "$package") holds no libhailort.so.$version below usr/lib"
    (cd "$out.deb" && find . ! -type d \( -path './usr/lib/*' -name 'libhailort.so*' -o -path ./usr/bin/hailortcli \) \
        -exec cp --parents --no-dereference --target-directory="$out" {} +)
    rm -rf "$out.deb"
    python3 scripts/setup_venv.py --venv "$venv" --lock locks/runtime-hailo.txt
    cp -R /usr/lib/python3/dist-packages/netifaces* "$venv"/lib/python3.11/site-packages/
    # All that it needs is there, from the lock: nothing is fetched that no hash names.
    "$venv/bin/pip" install --quiet --no-index "$wheel" ||
        fail "$(basename "$wheel") needs something that locks/runtime-hailo.txt does not have, see above"
    # Better here than on the Pi: whether package and library are there, and of one version. It opens no device.
    libraries=$(dirname "$out/$library")
    (cd / && HAILORT_LOGGER_PATH=NONE LD_LIBRARY_PATH=$libraries "$venv/bin/python" -c 'import hailo_platform') ||
        fail "$(basename "$wheel") does not import with $(basename "$package"), see above"
    ;;
*) fail "ENGINE=$engine is none of emulator, hailo" ;;
esac

# Nothing is installed into the image later: pip goes, and so do packages' own tests.
"$venv/bin/pip" uninstall --quiet --yes pip setuptools 2>/dev/null || "$venv/bin/pip" uninstall --quiet --yes pip
rm -f "$venv"/bin/pip* "$venv"/bin/activate* "$venv"/bin/Activate.ps1
find "$venv/lib" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +

printf '#!/bin/sh\nexec /opt/runtime/bin/python -m runtime.cli "$@"\n' >"$out/usr/local/bin/releasectl"
chmod 755 "$out/usr/local/bin/releasectl"
