#!/bin/sh
# Finish an environment: finish.sh PREFIX. It loses what nobody runs, and gets its bytecode, which its users cannot write.
set -eu
prefix=$1
packages=$(echo "$prefix"/lib/python3.*/site-packages)

rm -rf "$packages"/torch/test "$packages"/torch/bin/test_* "$packages"/torch/bin/*Test
find "$packages" -type d -name tests -prune -exec rm -rf {} +
find "$packages" -name '*.a' -delete

# Left out: modules of torch's own tests, some of them for a newer Python.
"$prefix/bin/python" -m compileall -q -j 0 -x 'torch/testing/_internal/' "$packages"
"$prefix/bin/python" -m pip --disable-pip-version-check check
"$prefix/bin/python" -m pip --disable-pip-version-check list --format=freeze > "$prefix/packages.txt"
