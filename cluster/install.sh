#!/usr/bin/env bash
# Makes a virtual environment with the locked packages and this repository in it, editable.
#   cluster/install.sh VENV LOCKFILE            (make install and make test-torch-min call it)
# Where pip looks for packages is pip's own configuration, never this file's.
set -euo pipefail
venv=$1 lock=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
start=$SECONDS

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    found=$("$python" --version 2>&1 | head -n 1 || true)
    echo "error: Python 3.11 or newer is needed, '$python' is: ${found:-not there}." \
        "Fix: install one and run make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi

step() { # name, log, command...
    local name=$1 log=$2 begin=$SECONDS
    shift 2
    printf 'install: %s ... ' "$name"
    if ! "$@" >"$log" 2>&1; then
        printf 'failed\n'
        tail -n 20 "$log" >&2
        echo "error: $name failed [file $log]. Fix: mend what it says, then run make install again" >&2
        exit 1
    fi
    printf '%s s\n' $((SECONDS - begin))
}

if [[ ! -x $venv/bin/python ]]; then
    mkdir -p "$venv"
    step "virtual environment $venv ($("$python" --version))" "$venv/install.log" "$python" -m venv "$venv"
fi
step "$(grep -c '==' "$lock") locked packages (the first time this downloads up to a few GB)" \
    "$venv/install.log" "$venv/bin/python" -m pip install --disable-pip-version-check -r "$lock"
# --no-build-isolation: setuptools is in the lock, so nothing else is fetched to build.
step "brainfoundry, editable" "$venv/install.log" \
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
rm -f "$venv/install.log"
touch "$venv/.installed"
echo "install: done in $((SECONDS - start)) s"
