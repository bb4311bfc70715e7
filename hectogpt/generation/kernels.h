// What the kernels of this folder share. native.py compiles its .cpp files when they are first needed.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int COLUMNS = 64;  // of a panel of weights, keys of a tile: four vectors of 16

// A mask of the first `count` of 16 numbers.
inline __mmask16 first_of_16(int count) { return (1u << std::clamp(count, 0, 16)) - 1; }
