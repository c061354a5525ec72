# shellcheck shell=bash disable=SC2034
# What bin/quickstart and bin/test share: packages of the host and the virtual environment. Sourced, not run.
# Everything is said before it is installed; what is there already costs nothing.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$top/.venv"

say() { printf '==> %s\n' "$*"; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "packages are missing and there is neither root nor sudo; install them yourself: ${missing[*]}"
    fi
}

# install_packages NAME...: Debian packages that are not there yet.
install_packages() {
    command -v apt-get >/dev/null || die "this set-up knows Debian and Ubuntu; elsewhere install: $*"
    missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return
    say "Installing Debian packages: ${missing[*]}"
    as_root apt-get update -q </dev/null || die "apt-get update failed: see above"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null \
        || die "apt-get install failed: see above"
}

# install_available NAME...: those of them that this distribution has.
install_available() {
    local known=()
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then known+=("$package")
        else say "This distribution has no package $package: tests that need it are skipped"
        fi
    done
    [ "${#known[@]}" -eq 0 ] || install_packages "${known[@]}"
}

# A Python of 3.11 or later that can make virtual environments.
find_python() {
    for python in python3 python3.13 python3.12 python3.11; do
        if command -v "$python" >/dev/null && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
        then return
        fi
    done
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then install_packages python3 python3-venv; python=python3
    else install_packages python3.11 python3.11-venv; python=python3.11
    fi
}

# make_venv EXTRA: .venv with our package, editable, once for each state of pyproject.toml.
make_venv() {
    local wanted what=".${1:+[$1]}"
    find_python
    wanted="$1 $(sha256sum "$top/pyproject.toml")"
    [ -x "$venv/bin/imgbuild" ] && [ "$(cat "$venv/.imgbuild-$1" 2>/dev/null)" = "$wanted" ] && return
    say "Making the virtual environment $venv with imgbuild and its Python packages (pip install -e $what)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || die "'$python -m venv' failed"
    (cd "$top" && "$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$what") || die "pip install failed: see above"
    printf '%s\n' "$wanted" > "$venv/.imgbuild-$1"
}

# What a build needs: QEMU and its tools, firmware, and what makes a disk from packages.
build_packages=(
    ca-certificates qemu-system-x86 qemu-utils ovmf mmdebstrap e2fsprogs fdisk dosfstools mtools zstd uidmap
    util-linux openssh-client
)
