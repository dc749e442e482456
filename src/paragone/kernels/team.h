// Threads that work on one thing together, phase by phase.
//
// A team's members run the same function; between its phases they wait for each other at a barrier, spinning, for
// the next phase follows at once. Between runs they spin for a moment and then sleep.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team {
  public:
    // Runs work(member) on `size` threads, or fewer where others use the processors; the caller is member 0. One run
    // at a time; others wait. `seldom`: its members meet so seldom that it wants all of them even then. What one of
    // them throws ends the work of all, and is thrown here.
    void run(int size, const std::function<void(int)>& work, bool seldom = false);

    // Waits for all members. Tasks are counted anew from then on.
    void barrier();

    // The number of the next task that nobody has taken in this phase.
    long next() { return taken_.fetch_add(1, std::memory_order_relaxed); }

    // The next of so many tasks: a member's own share in order, as reading memory likes it, then what others have left
    // of theirs; -1 where there is none.
    long next(int member, long tasks) {
        for (int i = 0; i < size_; i++) {
            int of = (member + i) % size_;
            long task = tasks * of / size_ + shares_[of].taken.fetch_add(1, std::memory_order_relaxed);
            if (task < tasks * (of + 1) / size_) return task;
        }
        return -1;
    }

    int size() const { return size_; }

    // Members run on these processors from now on, the second member on the second, and so on; where there are none,
    // on all that the caller may use. The first member is the caller's thread and stays where it is.
    void pin(const std::vector<int>& processors);

    // The process's team. A child that was forked has one of its own.
    static Team& shared();

  private:
    void member(int number, uint32_t seen);
    void work(int number);
    void grow(int size);
    void count_anew();
    void place(int member);
    int members(int size);

    std::mutex turn_;
    std::vector<std::thread> threads_;
    std::vector<int> processors_;
    const std::function<void(int)>* work_ = nullptr;
    int size_ = 1;
    int pause_ = 0, paused_ = 0;  // runs with fewer members: of a pause, and left of this one
    int contended_ = 0;           // runs in a row
    // Of the last run of several members: nanoseconds that it lasted, those that its members waited for each other
    // asleep, and how often one was preempted.
    long lasted_ = 0;
    std::atomic<long> waited_{0};
    std::atomic<int> preempted_{0};
    alignas(64) std::atomic<uint32_t> runs_{0};
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> broken_{false};  // a member of this run has thrown
    std::mutex throwing_;
    std::exception_ptr thrown_;
    alignas(64) std::atomic<long> taken_{0};
    struct alignas(64) Share {
        std::atomic<long> taken{0};
    };
    std::vector<Share> shares_{1};
};
