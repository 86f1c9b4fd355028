# Sourced by the other scripts: makes sure that Debian packages are there, or says what to install.
#
# need PACKAGE... installs what dpkg does not know as installed, by apt, when root or sudo allows.

need() {
    local missing=() package
    for package in "$@"; do
        dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=(sudo)
        else
            echo "Install these packages first: ${missing[*]}" >&2
            echo "  sudo apt-get install ${missing[*]}" >&2
            exit 2
        fi
    fi
    if ! command -v apt-get >/dev/null; then
        echo "This is not Debian or Ubuntu; install what these packages hold: ${missing[*]}" >&2
        exit 2
    fi
    echo "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null
}

need_rust() {
    if ! command -v cargo >/dev/null; then
        echo "Rust is missing; install it from https://rustup.rs, then run this again." >&2
        exit 2
    fi
}
