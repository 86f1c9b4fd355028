#!/bin/sh
# Behaves as a vendor's command-line tool: logs in with the old password, and changes it on every HSM. Its arguments are
# the user and the tokens' SoftHSM2 configurations; the file `mode` beside it says what goes wrong.
set -e
here=$(dirname "$0")
mode=$(cat "$here/mode")
echo "$mode" >>"$here/runs"
echo "$KEYWAY_OLD_PASSWORD $KEYWAY_NEW_PASSWORD"
echo "$KEYWAY_OLD_PASSWORD $KEYWAY_NEW_PASSWORD" >&2
echo "$KEYWAY_NEW_PASSWORD" >>"$here/passwords"
user=$1
shift

# Of all workers only one that looks whether a token is there logs nobody in. A user who is logged in is not changed.
for process in /proc/[0-9]*/cmdline; do
    tr '\0' ' ' <"$process" 2>/dev/null | grep -E "^keyway worker $KEYWAY_CLUSTER\.[^.]*\.$user(\.admin|\.trial)? $" \
        >>"$here/workers" || true
done
test ! -s "$here/workers" || exit 9

case $mode in
    fail-before) exit 3 ;;
    hang-before) sleep 600 ;;
    slow) sleep 2 ;;
    held) while test -e "$here/hold"; do sleep 0.05; done ;;
esac
for configuration in "$@"; do
    case "$mode $configuration" in
        first-alone*hsm-[23]*) continue ;;
        all-but-first*hsm-1*) continue ;;
    esac
    SOFTHSM2_CONF=$configuration pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --login \
        --pin "$user:$KEYWAY_OLD_PASSWORD" --change-pin --new-pin "$user:$KEYWAY_NEW_PASSWORD"
done
echo ended >>"$here/ended"
case $mode in
    fail-after | first-alone | all-but-first) exit 4 ;;
    hang-after) sleep 600 ;;
    # Whoever is still at work, and cannot be killed: the lock is not its standard input any more when this one ends.
    leave)
        exec 3<&0
        sh -c 'echo $$ >"$0"; exec sleep 600' "$here/left" </dev/null &
        until test -s "$here/left"; do sleep 0.01; done
        ;;
esac
