#include "team.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace {

constexpr int SPINS = 50000;  // about a millisecond: what Python does between two steps
constexpr int PATIENCE = 2000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

Team* team = nullptr;
std::mutex* making = new std::mutex;

}  // namespace

Team& Team::shared() {
    std::lock_guard lock(*making);
    if (!team) {
        team = new Team;
#if defined(__unix__) || defined(__APPLE__)
        static bool registered = false;
        if (!registered) pthread_atfork(nullptr, nullptr, [] {  // its threads are not in the child
            team = nullptr;
            making = new std::mutex;
        });
        registered = true;
#endif
    }
    return *team;
}

void Team::run(int size, const std::function<void(int)>& work) {
    std::lock_guard lock(turn_);
    grow(size);
    work_ = &work;
    size_ = size;
    taken_.store(0, std::memory_order_relaxed);
    left_.store((int)threads_.size(), std::memory_order_relaxed);
    runs_.fetch_add(1, std::memory_order_release);
    runs_.notify_all();
    work(0);
    for (int spin = 0; left_.load(std::memory_order_acquire); spin++)
        if (spin < PATIENCE) relax();
        else std::this_thread::yield();
}

void Team::grow(int size) {
    while ((int)threads_.size() + 1 < size) {
        int number = (int)threads_.size() + 1;
        threads_.emplace_back([this, number, seen = runs_.load()] { member(number, seen); });
    }
}

void Team::member(int number, uint32_t seen) {
    for (;;) {
        for (int spin = 0; runs_.load(std::memory_order_acquire) == seen && spin < SPINS; spin++) relax();
        runs_.wait(seen, std::memory_order_acquire);
        seen = runs_.load(std::memory_order_acquire);
        if (number < size_) (*work_)(number);
        left_.fetch_sub(1, std::memory_order_release);
    }
}

void Team::barrier() {
    if (size_ == 1) {
        taken_.store(0, std::memory_order_relaxed);
        return;
    }
    uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        taken_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; spin++)
        if (spin < PATIENCE) relax();
        else std::this_thread::yield();
}
