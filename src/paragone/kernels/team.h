// Threads that work on one thing together, phase by phase.
//
// A team's members run the same function; between its phases they wait for each other at a barrier, spinning, for
// the next phase follows at once. Between runs they spin for a moment and then sleep.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team {
  public:
    // Runs work(member) on `size` threads, or fewer where others use the processors; the caller is member 0. One run
    // at a time; others wait.
    void run(int size, const std::function<void(int)>& work);

    // Waits for all members. Tasks are counted anew from then on.
    void barrier();

    // The number of the next task that nobody has taken in this phase.
    long next() { return taken_.fetch_add(1, std::memory_order_relaxed); }

    int size() const { return size_; }

    // The process's team. A child that was forked has one of its own.
    static Team& shared();

  private:
    void member(int number, uint32_t seen);
    void grow(int size);
    int members(int size);

    std::mutex turn_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    int size_ = 1;
    int pause_ = 0, paused_ = 0;  // runs with fewer members: of a pause, and left of this one
    // Of the last run of several members: nanoseconds that it lasted, those that its members waited for each other
    // asleep, and how often one was preempted.
    long lasted_ = 0;
    std::atomic<long> waited_{0};
    std::atomic<int> preempted_{0};
    alignas(64) std::atomic<uint32_t> runs_{0};
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<long> taken_{0};
};
