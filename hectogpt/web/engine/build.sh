#!/bin/sh
# Builds kernels.wasm and kernels64.wasm here, and records the compiler; with a folder as argument, only builds them there.
# Debian: apt-get install clang lld
set -eu
cd "$(dirname "$0")"
for kind in "" 64; do
  clang --target=wasm32 -O3 -msimd128 -mbulk-memory -ffp-contract=off -fno-exceptions -nostdlib -Wall -Wextra \
    -Wno-missing-braces ${kind:+-DDOUBLE} -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=65536 \
    -o "${1:-.}/kernels$kind.wasm" kernels.cpp
done
[ -n "${1:-}" ] || clang --version | head -n 1 >kernels.wasm.txt
