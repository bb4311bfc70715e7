// Loops whose iterations are divided among threads: OpenMP's or, if the compiler lacks it, std::thread's. Each
// iteration is computed by one thread, in a fixed order, so results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#ifndef _OPENMP
#include <atomic>
#include <thread>
#include <vector>
#endif

// Calls turn(i) for each i from 0 to count - 1. Some calls may take longer than others.
template <class Turn>
static void in_parallel(int64_t count, int threads, Turn turn) {
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) turn(i);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count; i++) turn(i);
#else
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i = next++; i < count; i = next++) turn(i);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads && i < count; i++) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
#endif
}

// Like in_parallel, but in ranges of `size` iterations: calls range(first, last).
template <class Range>
static void in_ranges(int64_t count, int64_t size, int threads, Range range) {
    in_parallel((count + size - 1) / size, threads, [&](int64_t part) {
        const int64_t first = part * size;
        range(first, first + size < count ? first + size : count);
    });
}

// Memory of the calling thread, kept between calls and aligned to 64 bytes; null if memory is exhausted.
static char* scratch(size_t bytes) {
    struct Free {
        void operator()(char* p) const { free(p); }
    };
    static thread_local std::unique_ptr<char, Free> memory;
    static thread_local size_t size = 0;
    if (bytes > size) {
        memory.reset();
        size = (bytes + 63) / 64 * 64;
        memory.reset((char*)aligned_alloc(64, size));
        if (!memory) size = 0;
    }
    return memory.get();
}
